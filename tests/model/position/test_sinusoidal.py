from __future__ import annotations

import math

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.position.spec import Sinusoidal


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [8, 7])
def test_adds_the_waves_of_the_paper(frame, dim, interleaved):
    part = Sinusoidal(theta=50.0, interleaved=interleaved).build(frame(dim=dim))
    rows = [[0, 1, 90], [7, 0, 3]]
    x = torch.randn(2, 3, dim, dtype=torch.float64)
    got = part.embed(x, Context(torch.tensor(rows), CausalMask(3))) - x
    half = math.ceil(dim / 2)
    for b, row in enumerate(rows):
        for t, position in enumerate(row):
            for i in range(half):
                angle = position / 50.0 ** (2 * i / dim)
                sine, cosine = (2 * i, 2 * i + 1) if interleaved else (i, half + i)
                assert abs(got[b, t, sine] - math.sin(angle)) < 1e-12
                assert cosine >= dim or abs(got[b, t, cosine] - math.cos(angle)) < 1e-12


def test_half_precision_adds_once_rounded(frame):
    part = Sinusoidal().build(frame(dim=8))
    x = torch.randn(1, 3, 8)
    context = Context(torch.tensor([[1000, 2000, 3000]]), CausalMask(3))
    got = part.embed(x.bfloat16(), context)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, part.embed(x.bfloat16().float(), context).bfloat16(), rtol=0, atol=0)
    assert part.limit is None
    assert part.declare() == {}
