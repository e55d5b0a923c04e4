"""A running mean against a loop over numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmfactory.optim.average.ema import EmaAverage
from llmfactory.optim.average.spec import Ema


def history(average: EmaAverage, dtype: torch.dtype, steps: int = 12) -> tuple[np.ndarray, list[float]]:
    """The weights after each step (the first: before all), and the mean at the end."""
    layer = nn.Linear(3, 2, bias=False, dtype=dtype)
    average.begin(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    found = [layer.weight.detach().double().numpy().copy()]
    for step in range(steps):
        with torch.no_grad():
            layer.weight += (step + 1) * 0.125
        found.append(layer.weight.detach().double().numpy().copy())
        average.update(step)
    return np.array(found), average.weight("weight").double().numpy()


@pytest.mark.parametrize("spec", [Ema(decay=0.9, warmup=None), Ema(decay=0.7, warmup=5.0), Ema(decay=0.5, every=3)])
def test_equals_a_loop(spec: Ema) -> None:
    weights, mean = history(EmaAverage(spec), torch.float64)
    wanted = weights[0]
    for number, taken in enumerate(range(spec.every, len(weights), spec.every)):
        keep = spec.decay if spec.warmup is None else min(spec.decay, (1 + number) / (spec.warmup + number))
        wanted = keep * wanted + (1 - keep) * weights[taken]
    np.testing.assert_allclose(mean, wanted, rtol=1e-13)


def test_small_shares_are_not_lost_in_few_bits() -> None:
    """In bfloat16 a mean that moves by a thousandth of a difference would stand still."""
    average = EmaAverage(Ema(decay=0.999, warmup=None))
    weights, mean = history(average, torch.bfloat16)
    assert average.kept["weight"]["mean"].dtype == torch.float32
    assert (mean > weights[0]).all()
