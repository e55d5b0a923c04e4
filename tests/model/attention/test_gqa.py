from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.context import CausalMask, Context, DocumentMask, Mask
from llmfactory.core.sharding import Layout
from llmfactory.model.attention import gqa, reference
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.initialize import initialize


class Everything(Mask):
    def dense(self) -> None:
        return None


SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
MASKS = {"causal": CausalMask(7), "documents": DocumentMask(SEGMENTS), "everything": Everything()}


def tensors(n_kv_heads, queries=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, queries, 8), (2, n_kv_heads, 7, 8), (2, n_kv_heads, 7, 8)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_equation(mask, n_kv_heads, bias):
    """Values and gradients, float64 to 1e-12."""
    context = Context(torch.arange(7)[None], MASKS[mask])
    if bias:
        context = context.with_(bias=torch.randn(1, 6, 7, 7, generator=torch.Generator().manual_seed(1)))
    leaves = tensors(n_kv_heads)
    results = []
    for attend in (gqa.attend, reference.attend):
        y = attend(*leaves, context)
        gradients = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaves)
        results.append((y, *gradients))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_fewer_queries_than_keys():
    """The last two of seven tokens, as in cached decoding."""
    q, k, v = tensors(2, queries=2)
    segments = torch.ones(2, 7, dtype=torch.long)
    order = torch.arange(7).expand(2, 7)
    mask = DocumentMask(segments[:, 5:], segments, order[:, 5:], order)
    context = Context(order[:, 5:], mask)
    torch.testing.assert_close(gqa.attend(q, k, v, context), reference.attend(q, k, v, context), rtol=1e-12, atol=1e-12)


def test_plain_rows_take_the_causal_kernel(monkeypatch):
    """A mask that is the lower triangle is never built, and a longer state is never taken for one."""
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or kernel(*a, **k))
    q, k, v = tensors(2)
    gqa.attend(q, k, v, Context(torch.arange(7)[None], CausalMask(7)))
    assert calls[0]["is_causal"]
    assert "attn_mask" not in calls[0]
    with pytest.raises(RuntimeError):  # two queries over seven keys are not a triangle over [2, 2]
        gqa.attend(q[:, :, :2], k, v, Context(torch.arange(7)[None], CausalMask(2)))


@pytest.fixture
def part(site):
    def make(**changes):
        built = Gqa(**{"n_heads": 6, **changes}).build(site(dim=48, n_heads=6, head_dim=8))
        initialize(built, 0)
        return built

    return make


def test_whole_part_from_its_matrices(part):
    built = part(n_kv_heads=2, bias=True).double()
    for parameter in built.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(2, 7, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    context = Context(torch.arange(7)[None], CausalMask(7))
    q, k, v = (
        (x @ linear.weight.T + linear.bias).view(2, 7, heads, 8).transpose(1, 2)
        for linear, heads in ((built.q, 6), (built.k, 2), (built.v, 2))
    )
    want = reference.attend(q, k, v, context).transpose(1, 2).reshape(2, 7, 48) @ built.o.weight.T + built.o.bias
    torch.testing.assert_close(built(x, context), want, rtol=1e-11, atol=1e-11)


def test_declarations(part):
    declared = part(n_kv_heads=2, bias=True).declare()
    assert {name: entry.layout for name, entry in declared.items()} == {
        **{f"{name}.{kind}": Layout.column for name in "qkv" for kind in ("weight", "bias")},
        "o.weight": Layout.row,
        "o.bias": Layout.replicated,
    }
    assert {name for name, entry in declared.items() if entry.decay} == {f"{name}.weight" for name in "qkvo"}
    assert declared["o.weight"].start.std == 0.005
    assert declared["q.weight"].start.std == 0.02


def test_dropout_in_training_only(part):
    built = part(dropout=0.5)
    x, context = torch.randn(2, 7, 48), Context(torch.arange(7)[None], CausalMask(7))
    built.eval()
    torch.testing.assert_close(built(x, context), part()(x, context))
    built.train()
    torch.manual_seed(0)
    first = built(x, context)
    assert not torch.equal(first, built(x, context))


def test_half_of_the_heads_is_a_part_of_its_own(part):
    """Tensor parallelism: two cuts of q, k, v (by output) and o (by input) sum up to the whole, by the same forward."""
    whole = part(n_kv_heads=2).double()
    x, context = torch.randn(2, 7, 48, dtype=torch.float64), Context(torch.arange(7)[None], CausalMask(7))
    total = torch.zeros(2, 7, 48, dtype=torch.float64)
    for rank in range(2):
        cut = part(n_kv_heads=2).double()
        for name in "qkv":
            getattr(cut, name).weight = torch.nn.Parameter(getattr(whole, name).weight.chunk(2, 0)[rank])
        cut.o.weight = torch.nn.Parameter(whole.o.weight.chunk(2, 1)[rank])
        total += cut(x, context)
    torch.testing.assert_close(total, whole(x, context), rtol=1e-12, atol=1e-12)
