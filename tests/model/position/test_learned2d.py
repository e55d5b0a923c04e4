from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned2d


@pytest.fixture
def part(frame):
    part = Learned2d().build(frame(dim=8, max_positions=10))
    initialize(part, 0)
    return part


def context(rows):
    return Context(torch.tensor(rows), CausalMask(len(rows[0][0])))


def test_adds_a_vector_of_each_axis(part):
    x, rows = torch.randn(1, 3, 8), [[[0, 4, 4], [0, 1, 2]]]
    got = part.embed(x, context(rows))
    for t in range(3):
        want = x[0, t] + part.text[rows[0][0][t]] + part.blank[rows[0][1][t]]
        torch.testing.assert_close(got[0, t], want)
    one = part.embed(x, Context(torch.tensor([[3, 4, 5]]), CausalMask(3)))
    assert torch.equal(one, part.embed(x, context([[[3, 4, 5], [0, 0, 0]]])))


@pytest.mark.parametrize("rows", [[[[10, 0], [0, 0]]], [[[0, 0], [0, 10]]]])
def test_a_position_outside_is_named(part, rows):
    with pytest.raises(UserError, match="position 10 lies outside the 10 learned ones"):
        part.embed(torch.zeros(1, 2, 8), context(rows))


def test_limit_and_start(part):
    assert part.limit == 10
    assert set(part.declare()) == {"text", "blank"}
    assert 0.01 < part.blank.std() < 0.03
