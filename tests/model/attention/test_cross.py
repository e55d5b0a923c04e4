from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, FullMask, SegmentMask
from llmfactory.core.sharding import Layout
from llmfactory.inference.cache import KvCache
from llmfactory.model.attention import reference
from llmfactory.model.attention.spec import Cross


@pytest.fixture
def part(site):
    def make(**changes):
        built = Cross(**{"n_heads": 4, "bias": True, **changes}).build(site(layer=3, name="decoder", dim=24)).double().eval()
        for number, parameter in enumerate(built.parameters()):
            parameter.data.normal_(generator=torch.Generator().manual_seed(number))
        return built

    return make


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + shape[1]))


def context(memory, mask):
    return Context(torch.arange(5)[None], CausalMask(5), memory=memory, memory_mask=mask)


@pytest.mark.parametrize("fields", [{}, {"head_dim": 10, "scale": 1.0}, {"bias": False}])
def test_equals_the_equation(part, fields):
    """Queries of the decoder, keys and values of the memory, nothing of the decoder's own mask."""
    built, x, memory = part(**fields), rows(2, 5, 24), rows(2, 9, 24)
    mask = SegmentMask(torch.tensor([[1, 1, 2, 2, 0], [1] * 5]), torch.tensor([[1, 1, 1, 2, 2, 2, 0, 0, 0], [1] * 8 + [0]]))

    def linear(name, z):
        layer = getattr(built, name)
        return z @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    q, k, v = (linear(name, z).unflatten(-1, (4, -1)).transpose(1, 2) for name, z in (("q", x), ("k", memory), ("v", memory)))
    y = reference.attend(q, k, v, mask, scale=fields.get("scale"))
    want = linear("o", y.transpose(1, 2).flatten(2))
    got = built(x, context(memory, mask).with_(bias=torch.ones(1, 4, 5, 5)))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_later_calls_need_no_memory(part):
    """Keys and values stay in the state under the block's own name, rows first."""
    built, x, memory = part(), rows(2, 5, 24), rows(2, 9, 24)
    whole = built(x, context(memory, FullMask()))
    state = KvCache(5)
    first = built(x[:, :2], context(memory, FullMask()).with_(state=state))
    second = built(x[:, 2:], context(None, FullMask()).with_(state=state))
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-12, atol=1e-12)
    kept = state.read("decoder.3.cross")
    assert [tuple(tensor.shape) for tensor in kept] == [(2, 4, 9, 6)] * 2
    state.keep([1])
    torch.testing.assert_close(built(x[1:], context(None, FullMask()).with_(state=state)), whole[1:], rtol=1e-12, atol=1e-12)


def test_a_new_memory_replaces_the_one_kept(part):
    built, x, state = part(), rows(2, 5, 24), KvCache(5)
    built(x, context(rows(2, 9, 24), FullMask()).with_(state=state))
    other = context(rows(2, 7, 24), FullMask())
    torch.testing.assert_close(built(x, other.with_(state=state)), built(x, other), rtol=0, atol=0)


def test_dropout_in_training_only(part):
    built, whole, x, memory = part(dropout=0.5), part(), rows(2, 5, 24), rows(2, 9, 24)
    torch.testing.assert_close(built(x, context(memory, FullMask())), whole(x, context(memory, FullMask())))
    assert not torch.equal(built.train()(x, context(memory, FullMask())), whole(x, context(memory, FullMask())))


def test_declarations(part):
    declared = part().declare()
    assert {name: entry.layout for name, entry in declared.items()} == {
        **{f"{name}.{kind}": Layout.column for name in "qkv" for kind in ("weight", "bias")},
        "o.weight": Layout.row,
        "o.bias": Layout.replicated,
    }
    assert declared["o.weight"].start.std == 0.005
    assert declared["k.weight"].start.std == 0.02


@pytest.mark.parametrize(("bias", "qkv_bias", "with_bias"), [(False, True, "qkv"), (True, False, "o"), (True, None, "qkvo")])
def test_which_projections_have_a_bias(part, bias, qkv_bias, with_bias):
    built = part(bias=bias, qkv_bias=qkv_bias)
    assert {name for name in "qkvo" if getattr(built, name).bias is not None} == set(with_bias)
