"""Rounding at random: to one of the two neighbours, to either as often as the distance says."""

from __future__ import annotations

import math

import pytest
import torch

from llmfactory.kernel.random_bits import random_bits
from llmfactory.kernel.stochastic_round import stochastic_round

DRAWS = 2**16
VALUES = [1.0 + 2**-8, 1.003, -1.003, 0.1, -7.77e-5, 3.0e38, 1.9999, -(2.0**-126) * 1.3, 1e-40, 255.9]


def neighbours(x: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above, by counting on Python's floats."""
    _, exponent = math.frexp(x)
    digit = 2.0 ** max(exponent - 8, -126 - 7)
    return math.floor(x / digit) * digit, math.ceil(x / digit) * digit


@pytest.mark.parametrize("value", VALUES)
def test_the_mean_is_the_number(value: float) -> None:
    x = torch.full((DRAWS,), value)
    exact = x[0].double().item()
    below, above = neighbours(exact)
    found = stochastic_round(x, random_bits(torch.arange(DRAWS, dtype=torch.int32), 99)).double()
    assert set(found.tolist()) == {below, above}
    share = (exact - below) / (above - below)
    assert abs((found == above).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / DRAWS) + 1e-4


def test_every_draw_counts_as_often_as_any() -> None:
    """All 2^16 draws, each once: the mean is exact."""
    bits = torch.arange(2**16, dtype=torch.int32)
    for value in (1.003, -0.37, 5e-39):
        x = torch.full((2**16,), value)
        assert stochastic_round(x, bits).double().mean().item() == pytest.approx(x[0].double().item(), rel=1e-12)


def test_only_the_lower_bits_count() -> None:
    x = torch.randn(100)
    bits = torch.randint(0, 2**16, (100,), dtype=torch.int32)
    assert stochastic_round(x, bits).equal(stochastic_round(x, bits + (77 << 16)))


def test_what_bfloat16_has_stays() -> None:
    x = torch.cat([torch.randn(1000).bfloat16().float(), torch.tensor([0.0, -0.0, 2.0**-133, 65536.0])])
    bits = torch.full_like(x, -1, dtype=torch.int32)
    assert stochastic_round(x, bits).float().equal(x)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    found = stochastic_round(x, torch.full((3,), -1, dtype=torch.int32))
    assert found[:2].tolist() == [torch.inf, -torch.inf]
    assert found[2].isnan()
