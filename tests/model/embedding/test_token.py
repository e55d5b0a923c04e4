from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Layout
from llmfactory.model.embedding.spec import Token


def test_looks_up():
    part = Token().build(11, 4, 0.3)
    part.weight.data.normal_()
    tokens = torch.tensor([[3, 10], [0, 3]])
    got = part(tokens, None)
    assert got.shape == (2, 2, 4)
    for b, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(got[b, t], part.weight[tokens[b, t]])


def test_declaration():
    declared = Token().build(11, 4, 0.3).declare()["weight"]
    assert (declared.layout, declared.decay, declared.start.std) == (Layout.vocab, True, 0.3)


def test_scale():
    """The vectors are multiplied by scale * dim^power; the matrix, which a tied head borrows, is not."""
    part = Token(scale=3.0, dim_power=0.5).build(11, 4, 0.3)
    part.weight.data.normal_()
    tokens = torch.tensor([[3, 10]])
    torch.testing.assert_close(part(tokens, None), 6 * part.weight[tokens], rtol=1e-6, atol=0)


def test_the_scale_is_positive():
    with pytest.raises(ConfigError, match="greater than"):
        Token(scale=0.0)
