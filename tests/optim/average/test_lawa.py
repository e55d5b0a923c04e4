"""The last few, the oldest replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.optim.average.lawa import LawaAverage
from llmfactory.optim.average.spec import Lawa


@pytest.mark.parametrize(
    ("steps", "mean"),
    [(1, None), (2, 2.0), (4, (2 + 4) / 2), (6, (2 + 4 + 6) / 3), (11, (6 + 8 + 10) / 3), (16, (12 + 14 + 16) / 3)],
)
def test_the_mean_of_the_last(steps: int, mean: float | None) -> None:
    average = LawaAverage(Lawa(last=3, every=2))
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average.begin(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    for step in range(steps):
        nn.init.constant_(layer.weight, step + 1)
        average.update(step)
    found = average.weight("weight")
    assert (found if found is None else found.item()) == (mean if mean is None else pytest.approx(mean, rel=1e-14))
