from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.context import CausalMask, DocumentMask, FullMask, PermutationMask, PrefixMask, SegmentMask
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
