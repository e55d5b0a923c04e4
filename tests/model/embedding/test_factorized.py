from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Layout
from llmfactory.model.embedding.spec import Factorized
from llmfactory.model.head.spec import Lm


@pytest.mark.parametrize("bias", [True, False])
def test_two_matrices(bias):
    part = Factorized(width=3, bias=bias).build(11, 4, 0.3)
    for parameter in part.parameters():
        parameter.data.normal_()
    tokens = torch.tensor([[3, 10]])
    want = part.weight[tokens] @ part.project.weight.T + (part.project.bias if bias else 0.0)
    torch.testing.assert_close(part(tokens, None), want, rtol=1e-6, atol=1e-6)
    assert (part.weight.shape, part.project.weight.shape) == ((11, 3), (4, 3))
    assert part.declare()["weight"].layout is Layout.vocab
    assert (part.project.bias is not None) is bias


def test_a_tied_head_projects_back(gpt, build):
    """OPT-350M: 512 numbers a token in a model of width 1024."""
    model = build(gpt(embedding=Factorized(width=7), head=Lm(tied=True, width=7)))
    hidden = torch.randn(2, 24, dtype=torch.float64)
    want = hidden @ model.head.transform.dense.weight.T @ model.embedding.weight.T
    torch.testing.assert_close(model.head(hidden), want, rtol=1e-12, atol=1e-12)


def test_small_keeps_the_ratio():
    assert Factorized(width=512).small(32 / 1024) == {"width": 16}
    with pytest.raises(ConfigError):
        Factorized(width=0)
