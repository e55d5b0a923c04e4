from __future__ import annotations

import copy

import pytest
import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize


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
