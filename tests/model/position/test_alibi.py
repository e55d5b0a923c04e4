from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask
from llmfactory.model.position.alibi import slopes
from llmfactory.model.position.distance import distances
from llmfactory.model.position.spec import Alibi


def test_slopes_of_the_paper():
    """Section 3: 8 heads have 1/2 ... 1/256; a number between two powers takes every other slope of the next one."""
    assert slopes(8) == [2.0**-i for i in range(1, 9)]
    assert slopes(16)[:3] == [2**-0.5, 0.5, 2**-1.5]
    assert slopes(12) == slopes(8) + slopes(16)[0:8:2]
    assert slopes(6) == slopes(4) + slopes(8)[0:4:2]
    assert slopes(1) == [2.0**-8]


def test_equals_the_reference_library():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for n_heads in (1, 4, 6, 40, 71, 112):
        theirs = build_alibi_tensor(torch.ones(1, 3), n_heads, torch.float32).view(n_heads, 3)[:, 2] / 2
        torch.testing.assert_close(torch.tensor(slopes(n_heads)), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mask", [CausalMask(4), FullMask(4)])
def test_scores_fall_with_the_distance(frame, mask):
    part = Alibi().build(frame(n_heads=3))
    rows = [[0, 1, 2, 3], [0, 0, 1, 5]]
    bias = part.prepare(Context(torch.tensor(rows), mask), torch.float64).bias
    assert bias.shape == (2, 3, 4, 4)
    for b, row in enumerate(rows):
        for h, slope in enumerate(slopes(3)):
            for t, q in enumerate(row):
                for s, k in enumerate(row):
                    assert bias[b, h, t, s] == -slope * abs(q - k)


def test_equal_rows_share_one_table():
    rows = torch.arange(4).expand(3, 4)
    assert distances(Context(rows, CausalMask(4))).shape == (1, 4, 4)
    assert distances(Context(rows.clone(), CausalMask(4))).shape == (1, 4, 4)
    other = rows.clone()
    other[2, 3] = 9
    assert distances(Context(other, CausalMask(4)))[2, 0].tolist() == [0, 1, 2, 9]
    step = distances(Context(other[:, 3:], CausalMask(4, queries=1), key_positions=other))
    assert step[:, 0].tolist() == [[-3, -2, -1, 0], [-3, -2, -1, 0], [-9, -8, -7, 0]]
