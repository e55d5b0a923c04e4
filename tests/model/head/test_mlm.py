from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.errors import ConfigError
from llmfactory.model.embedding.spec import Factorized
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.head.spec import Mlm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(gpt, build, tied, bias):
    model = build(gpt(head=Mlm(tied=tied, activation=Activation.gelu, bias=bias)))
    head, hidden = model.head, torch.randn(2, 3, 24, dtype=torch.float64)
    dense = F.gelu(hidden @ head.transform.dense.weight.T + head.transform.dense.bias)
    centered = dense - dense.mean(-1, keepdim=True)
    normed = (
        centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * head.transform.norm.weight
        + head.transform.norm.bias
    )
    shift = head.bias if bias else 0.0
    torch.testing.assert_close(head.features(hidden), normed, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head(hidden), normed @ head.weight.T + shift, rtol=1e-10, atol=1e-10)
    assert (head.weight is model.embedding.weight) is tied
    assert (head.bias is not None) is bias


def test_activation(gpt, build):
    heads = [build(gpt(head=Mlm(tied=True, activation=kind))).head for kind in (Activation.gelu, Activation.relu)]
    hidden = torch.randn(1, 24, dtype=torch.float64)
    assert not torch.allclose(heads[0](hidden), heads[1](hidden))


def test_as_wide_as_the_vocabulary_s_vectors(gpt, build):
    model = build(gpt(embedding=Factorized(width=7), head=Mlm(tied=True, activation=Activation.gelu, width=7)))
    assert model.head.transform.dense.weight.shape == (7, 24)
    assert model.head.weight is model.embedding.weight
    assert model.head(torch.randn(2, 24, dtype=torch.float64)).shape == (2, 97)
    assert model.head.visited() == 7 * 24 + 97 * 7
    with pytest.raises(ConfigError, match="width of the embedding's vectors, 7") as error:
        gpt(embedding=Factorized(width=7), head=Mlm(tied=True, activation=Activation.gelu))
    assert error.value.problems[0].repair == "head.width=7"


def test_small():
    assert Mlm(tied=True, activation=Activation.gelu, width=128).small(0.25) == {"width": 32}
    assert Mlm(tied=True, activation=Activation.gelu).small(0.25) == {"width": None}
