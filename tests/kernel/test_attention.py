from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.context import CausalMask, DocumentMask, FullMask, PermutationMask, PrefixMask, SegmentMask
from llmfactory.kernel import attention
from llmfactory.kernel.attention import attend
from llmfactory.model.attention import reference

SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
PREFIX = torch.tensor([[1, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0]])
MASKS = {
    "full": lambda: FullMask(7),
    "segments": lambda: SegmentMask(SEGMENTS),
    "causal": lambda: CausalMask(7),
    "documents": lambda: DocumentMask(SEGMENTS),
    "prefix": lambda: PrefixMask(PREFIX, SEGMENTS),
    "permutation": lambda: PermutationMask(torch.tensor([[0, 3, 1, 2, 0, 0, 0], [0, 0, 4, 1, 3, 0, 2]]), SEGMENTS, strict=False),
}
OPTIONS = {
    "": {},
    "bias": {"bias": torch.randn(1, 6, 7, 7, generator=torch.Generator().manual_seed(1))},
    "bias_of_rows": {"bias": torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(1))},
    "scale": {"scale": 0.9},
    "window": {"window": 2},
    "softcap": {"softcap": 1.5},
    "all": {"bias": torch.ones(1, 6, 7, 7).triu(), "scale": 0.7, "window": 3, "softcap": 2.0},
}


def tensors(n_kv_heads, queries=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, queries, 8), (2, n_kv_heads, 7, 8), (2, n_kv_heads, 7, 10)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_equation(mask, n_kv_heads, options):
    """Values and gradients, float64 to 1e-12."""
    leaves = tensors(n_kv_heads)
    results = []
    for function in (attend, reference.attend):
        y = function(*leaves, MASKS[mask](), **OPTIONS[options])
        gradients = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaves)
        results.append((y, *gradients))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 2])
def test_fewer_queries_than_keys(window):
    """The last of seven tokens, as in cached decoding."""
    segments, order = torch.ones(2, 7, dtype=torch.long), torch.arange(7).expand(2, 7)
    whole = tensors(2)
    for queries in (1, 2):
        q, k, v = (whole[0][:, :, -queries:], *whole[1:])
        want = reference.attend(*whole, CausalMask(7), window=window)[:, :, -queries:]
        for mask in (
            DocumentMask(segments[:, -queries:], segments, order[:, -queries:], order),
            CausalMask(7, queries=queries),
        ):
            torch.testing.assert_close(attend(q, k, v, mask, window=window), want, rtol=1e-12, atol=1e-12)


def test_plain_rows_take_the_causal_kernel(monkeypatch):
    """A mask that is the lower triangle is never built, and a longer state is never taken for one."""
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or kernel(*a, **k))
    q, k, v = tensors(2)
    attend(q, k, v, CausalMask(7))
    attend(q, k, v, CausalMask(7), window=7)
    assert all(call["is_causal"] and "attn_mask" not in call for call in calls)
    attend(q, k, v, CausalMask(7), window=6)
    assert calls[2]["attn_mask"] is not None
    with pytest.raises(RuntimeError):  # two queries over seven keys are not a triangle over [2, 2]
        attend(q[:, :, :2], k, v, CausalMask(2))


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_who_sees_nothing_gets_zeros(softcap):
    """The first of a factorization order in the query stream, or a query whose document has no keys."""
    leaves = tensors(2)
    mask = SegmentMask(torch.tensor([[3, 1, 1, 1, 1, 1, 1]] * 2), torch.ones(2, 7, dtype=torch.long))
    y = attend(*leaves, mask, softcap=softcap)
    assert y[:, :, 0].eq(0).all()
    y.square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    torch.testing.assert_close(y[:, :, 1:], reference.attend(*leaves, FullMask(), softcap=softcap)[:, :, 1:])


def test_half_precision_caps_in_float32():
    q, k, v = (10 * leaf for leaf in tensors(2, dtype=torch.bfloat16))
    got = attend(q, k, v, CausalMask(7), softcap=20.0)
    want = reference.attend(q.double(), k.double(), v.double(), CausalMask(7), softcap=20.0)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=0, atol=0.3)  # values of size 10 with 8 bits


@pytest.mark.parametrize("window", [1, 3, 5, 8, 15, 16])
def test_a_window_in_blocks_equals_the_mask_over_the_row(window, monkeypatch):
    """Values and gradients of 32 tokens; rows that are no two blocks long, or no whole number of them, among them."""
    monkeypatch.setattr(attention, "BLOCK", 5)
    shapes = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, *a, **o: shapes.append((q.shape[2], k.shape[2])) or kernel(q, k, *a, **o)
    )
    results = []
    for function in (attend, reference.attend):
        leaves = long_tensors()
        y = function(*leaves, CausalMask(32), window=window, scale=0.4)
        results.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    step = max(window, 5)
    assert sum(queries for queries, _ in shapes) == 32
    assert max(keys for _, keys in shapes) == step + window - 1


PACKED = torch.tensor([[1] * 5 + [2] * 20 + [3] * 3 + [0] * 4, [1] * 9 + [2] * 9 + [3] + [4] * 13])


def long_tensors(n_kv_heads=2, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 32, 8), (2, n_kv_heads, 32, 8), (2, n_kv_heads, 32, 8)
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", [DocumentMask, SegmentMask])
def test_documents_by_themselves_equal_the_mask_over_the_row(kind, window, monkeypatch):
    """Values and gradients, without a mask over the row being built."""
    monkeypatch.setattr(attention, "PIECE", 0)
    results = []
    for function in (attend, reference.attend):
        leaves, mask = long_tensors(), kind(PACKED)
        y = function(*leaves, mask, window=window, scale=0.4)
        if function is attend:
            assert mask._dense == {}
        results.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_documents_are_cut_where_that_is_less_work(monkeypatch):
    """Long rows of short documents are; short rows, rows of one document and whatever a mask alone can say are not."""
    calls = []
    monkeypatch.setattr(attention, "_one_by_one", lambda *given: calls.append(given[3].lengths) or given[0])
    q, k, v = (torch.zeros(1, 8, 512, 64) for _ in range(3))
    halves = torch.tensor([[1] * 256 + [2] * 256])
    attend(q, k, v, DocumentMask(halves))
    attend(q, k, v, SegmentMask(halves))
    assert calls == [[256, 256]] * 2
    apart = torch.tensor([[1] * 200 + [2] * 112 + [1] * 200])  # a document in two places
    order = torch.arange(512)[None]
    for mask in (
        DocumentMask(torch.ones_like(halves)),
        DocumentMask(apart),
        DocumentMask(halves, halves, order, order),
        PrefixMask(halves == 1, halves),
        PermutationMask(order, halves, strict=False),
        SegmentMask(halves, halves.clone()),
    ):
        attend(q, k, v, mask)
    attend(q, k, v, DocumentMask(halves), torch.zeros(1, 8, 512, 512))
    attend(q[:, :, :4], k[:, :, :4], v[:, :, :4], DocumentMask(halves[:, 254:258]))
    assert len(calls) == 2


def test_documents_of_masks():
    assert DocumentMask(PACKED).documents().lengths == [5, 20, 3, 4, 9, 9, 1, 13]
    assert DocumentMask(PACKED).documents().causal
    assert not SegmentMask(PACKED).documents().causal
    assert CausalMask(4).documents() is None


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", [DocumentMask, SegmentMask])
def test_documents_by_the_kernel_for_several_lengths(kind, window):
    leaves = long_tensors(dtype=torch.bfloat16, device="cuda")
    mask = kind(PACKED.cuda())
    y = attend(*leaves, mask, window=window)
    assert mask._dense == {}
    exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    want = reference.attend(*exact, kind(PACKED), window=window)
    torch.testing.assert_close(y.double().cpu(), want, rtol=0.02, atol=0.02)
    for got, wanted in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(want.sum(), exact), strict=True):
        torch.testing.assert_close(got.double().cpu(), wanted, rtol=0.05, atol=0.05)
