from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned


@pytest.fixture
def part(frame):
    part = Learned().build(frame(dim=8, max_positions=10))
    initialize(part, 0)
    return part


def context(rows):
    return Context(torch.tensor(rows), CausalMask(len(rows[0])))


def test_adds_the_vector_of_each_position(part):
    x = torch.randn(2, 3, 8)
    got = part.embed(x, context([[0, 1, 2], [9, 0, 5]]))
    for b, row in enumerate([[0, 1, 2], [9, 0, 5]]):
        for t, position in enumerate(row):
            torch.testing.assert_close(got[b, t], x[b, t] + part.weight[position])


@pytest.mark.parametrize("wrong", [10, -1])
def test_a_position_outside_is_named(part, wrong):
    with pytest.raises(UserError, match=f"position {wrong} lies outside the 10 learned ones"):
        part.embed(torch.zeros(1, 2, 8), context([[0, wrong]]))


def test_the_model_refuses_before_it_computes(gpt, build):
    model = build(gpt())
    model.blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("a block ran"))
    with pytest.raises(UserError, match=r"model\.max_positions=49"):
        model(torch.zeros(1, 49, dtype=torch.long), Context(torch.arange(49)[None], CausalMask(49)))


def test_limit_and_start(part):
    assert part.limit == 10
    assert part.declare()["weight"].decay
    assert 0.01 < part.weight.std() < 0.03


def test_rows_before_the_first_position_are_never_used(frame):
    part = Learned(offset=2).build(frame(dim=8, max_positions=10))
    initialize(part, 0)
    assert part.weight.shape == (12, 8)
    assert part.limit == 10
    torch.testing.assert_close(part.embed(torch.zeros(1, 2, 8), context([[0, 9]]))[0], part.weight[[2, 11]])
    with pytest.raises(UserError, match="position 10 lies outside the 10 learned ones"):
        part.embed(torch.zeros(1, 2, 8), context([[0, 10]]))
