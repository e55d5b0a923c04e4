"""Where it begins, and that it weighs all alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.core.errors import ConfigError
from llmfactory.optim.average.spec import Swa
from llmfactory.optim.average.swa import SwaAverage


def taken(spec: Swa, max_steps: int) -> torch.Tensor | None:
    average = spec.build(max_steps)
    assert isinstance(average, SwaAverage)
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average.begin(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    for step in range(max_steps):
        nn.init.constant_(layer.weight, step + 1)
        average.update(step)
    return average.weight("weight")


@pytest.mark.parametrize(
    ("spec", "steps", "mean"),
    [
        (Swa(), 8, (6 + 7 + 8) / 3),
        (Swa(start_share=0.5), 8, (4 + 5 + 6 + 7 + 8) / 5),
        (Swa(start_step=3, every=2), 8, (3 + 5 + 7) / 3),
        (Swa(start_step=0), 4, (1 + 2 + 3 + 4) / 4),
        (Swa(start_share=1.0), 5, 5.0),
    ],
)
def test_the_mean_of_what_is_taken(spec: Swa, steps: int, mean: float) -> None:
    assert taken(spec, steps).item() == pytest.approx(mean, rel=1e-14)


def test_before_there_is_an_average_the_weights_are_used() -> None:
    assert taken(Swa(start_step=9), 8) is None


def test_the_start_is_said_once() -> None:
    with pytest.raises(ConfigError, match="start_step=3 says it too"):
        Swa(start_step=3, start_share=0.5)
