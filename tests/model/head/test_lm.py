from __future__ import annotations

import copy

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Layout
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.objective.objective import Outputs
from llmfactory.objective.spec import Causal


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(family, build, tied, bias):
    model = build(family(head=Lm(tied=tied, bias=bias)))
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    shift = model.head.bias if bias else 0.0
    torch.testing.assert_close(model.head(hidden), hidden @ model.head.weight.T + shift, rtol=1e-12, atol=1e-12)
    assert (model.head.weight is model.embedding.weight) is tied
    assert (model.head.bias is not None) is bias


def test_a_tied_matrix_has_one_name(family):
    tied, owned = family(head=Lm(tied=True)).build(), family(head=Lm(tied=False)).build()
    assert set(owned.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    assert set(declarations(owned)) - set(declarations(tied)) == {"head.weight"}
    assert declarations(owned)["head.weight"].layout is Layout.vocab


def test_the_tie_holds_when_the_parameter_is_replaced(family):
    """Off the meta device, copied, loaded: whatever happens to the embedding's parameter, the head borrows that one."""
    with torch.device("meta"):
        model = family(head=Lm(tied=True)).build()
    model.to_empty(device="cpu")
    initialize(model, 0)
    assert model.head.weight is model.embedding.weight
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight
    assert twin.head.weight is not model.embedding.weight
    twin.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()}, assign=True)
    assert torch.equal(twin.head.weight, model.embedding.weight + 1)


def test_a_tied_matrix_gets_both_gradients(family, build):
    model = build(family(head=Lm(tied=True)))
    vectors = model.embedding(torch.tensor([[3]]), None)
    model.head(vectors)[..., 5].sum().backward()
    assert {int(row) for row in model.embedding.weight.grad.abs().sum(-1).nonzero()} == {3, 5}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_scaled_and_capped_logits(gpt, build, tied, bias):
    """softcap tanh((scale dim^power h W^T + b) / softcap): the factor leaves the bias alone, the cap does not."""
    model = build(gpt(head=Lm(tied=tied, bias=bias, scale=3.0, dim_power=-0.5, softcap=0.5)))
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    z = 3 * 24**-0.5 * (hidden @ model.head.weight.T) + (model.head.bias if bias else 0.0)
    torch.testing.assert_close(model.head(hidden), 0.5 * torch.tanh(z / 0.5), rtol=1e-12, atol=1e-12)
    assert z.abs().max() > 0.5


def test_another_width(gpt, build):
    """Hidden vectors are projected to the width of the vocabulary's (OPT-350M)."""
    model = build(gpt(head=Lm(tied=False, width=7)))
    dense = model.head.transform.dense
    assert (dense.weight.shape, dense.bias, model.head.weight.shape) == ((7, 24), None, (97, 7))
    hidden = torch.randn(2, 3, 24, dtype=torch.float64)
    torch.testing.assert_close(model.head(hidden), hidden @ dense.weight.T @ model.head.weight.T, rtol=1e-12, atol=1e-12)
    assert model.head.visited() == 7 * 24 + 97 * 7


def test_a_tied_head_is_as_wide_as_the_embedding(gpt):
    with pytest.raises(ConfigError, match="width of the embedding's vectors, 24") as error:
        gpt(head=Lm(tied=True, width=8))
    assert [(problem.path, problem.repair) for problem in error.value.problems] == [("head.width", "head.width=null")]


@pytest.mark.parametrize("tied", [True, False])
def test_visited_counts_the_matrix_tied_or_not(gpt, tied):
    assert gpt(head=Lm(tied=tied)).build().head.visited() == 97 * 24


@pytest.mark.parametrize("name", ["scale", "softcap", "width"])
def test_factors_are_positive(name):
    with pytest.raises(ConfigError) as error:
        Lm(tied=True, **{name: 0})
    assert error.value.problems[0].path == name


def test_small():
    assert Lm(tied=True, width=512).small(0.125) == {"width": 64}
    assert Lm(tied=True).small(0.125) == {"width": None}


def test_the_training_loss_sees_scale_and_cap(gpt, build):
    """The fused loss and plain cross-entropy of the head's own logits, with every gradient."""
    model = build(gpt(head=Lm(tied=True, bias=True, scale=0.7, softcap=3.0)))
    tokens, labels = torch.randint(97, (2, 9)), torch.randint(97, (2, 9))
    context = Context(torch.arange(9).expand(2, 9), CausalMask(9))
    found = []
    for fused in (True, False):
        hidden = model(tokens, context)
        if fused:
            total, count = Causal().build()(Outputs(hidden, model.head), {"tokens": tokens, "labels": labels})["loss"]
            loss = total / count
        else:
            loss = torch.nn.functional.cross_entropy(model.head(hidden).flatten(0, 1), labels.flatten())
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
