from __future__ import annotations

import cmath

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.position.spec import Rope, Rope2d


def turned(part, q, positions):
    context = part.prepare(Context(torch.tensor(positions), CausalMask(q.shape[2])), q.dtype)
    return part.rotate(q, q[:, :1], context)


def test_each_half_turns_by_its_own_position(frame):
    """Within a half, coordinate i pairs with i + D/4, at the angle of a head of D/2."""
    part = Rope2d(theta=30.0).build(frame(head_dim=12))
    q = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    positions = [[[0, 1, 1, 1], [0, 0, 1, 2]], [[5, 9, 2, 7], [3, 0, 4, 1]]]
    for before, after in zip((q, q[:, :1]), turned(part, q, positions), strict=True):
        for b in range(2):
            for t in range(4):
                for axis in range(2):
                    for i in range(3):
                        x, y = 6 * axis + i, 6 * axis + i + 3
                        z = torch.complex(before[b, :, t, x], before[b, :, t, y])
                        want = z * cmath.exp(1j * positions[b][axis][t] * 30.0 ** (-2 * i / 6))
                        torch.testing.assert_close(torch.complex(after[b, :, t, x], after[b, :, t, y]), want)


def test_one_position_means_no_blanks(frame):
    part = Rope2d().build(frame(head_dim=8))
    q = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    for got, want in zip(turned(part, q, [[4, 5, 6]]), turned(part, q, [[[4, 5, 6], [0, 0, 0]]]), strict=True):
        assert torch.equal(got, want)


def test_a_part_of_one_axis_refuses_two(frame):
    part = Rope().build(frame(head_dim=8))
    with pytest.raises(UserError, match="rope_2d"):
        turned(part, torch.randn(1, 2, 3, 8), [[[4, 5, 6], [0, 0, 0]]])


def test_odd_halves_are_refused(llama):
    with pytest.raises(ConfigError, match="multiple of 4") as caught:
        llama(position=Rope2d(), dim=36)
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == ("attention.n_heads", "attention.n_heads=3 attention.n_kv_heads=null")
