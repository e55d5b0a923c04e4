from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import Context, FullMask
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.embedding.spec import TokenSegment

TOKENS = torch.tensor([[3, 10, 0]])


def context(types):
    return Context(torch.arange(3)[None], FullMask(), types=types)


def part(n_types=3):
    made = TokenSegment(n_types=n_types).build(11, 4, 0.3)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made


def test_sum_of_both():
    made, types = part(), torch.tensor([[0, 2, 1]])
    torch.testing.assert_close(made(TOKENS, context(types)), made.weight[TOKENS] + made.types[types], rtol=0, atol=0)


def test_without_types_all_are_the_first():
    made = part()
    assert torch.equal(made(TOKENS, context(None)), made(TOKENS, context(torch.zeros(1, 3, dtype=torch.long))))
    assert not torch.equal(made(TOKENS, context(None)), made.weight[TOKENS])


def test_one_kind_is_that_of_all_texts():
    """A pair of texts has two places, and RoBERTa one vector for both."""
    made = part(n_types=1)
    want = made.weight[TOKENS] + made.types[0]
    assert torch.equal(made(TOKENS, context(torch.tensor([[0, 1, 1]]))), want)
    assert torch.equal(made(TOKENS, context(None)), want)


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_type_that_there_is_not(wrong):
    with pytest.raises(UserError, match=f"type {wrong}, but the model has 3 types, from 0 .model.embedding.n_types=3"):
        part()(TOKENS, context(torch.tensor([[0, wrong, 1]])))


def test_types_are_at_least_one():
    with pytest.raises(ConfigError, match="at least 1"):
        TokenSegment(n_types=0)
