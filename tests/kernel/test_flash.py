"""Attention in Triton (kernel/flash.py, kernel/tile/attention.py) against the plain one in float64."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, agree, random

from llmfactory.core.context import CausalMask, DocumentMask, FullMask, Mask, PrefixMask, SegmentMask
from llmfactory.core.kernel import Kernel
from llmfactory.kernel.attention import attend, plain
from llmfactory.kernel.flash import flash_attention, form_of


def segments(device: str, length: int = 19) -> torch.Tensor:
    """Two rows: three documents and padding; one document."""
    found = torch.ones(2, length, dtype=torch.int64, device=device)
    found[0, 5:] = 2
    found[0, 14:] = 3
    found[0, -2:] = 0
    return found


CASES = {
    "causal": (lambda device: CausalMask(19, device), 19, None, None),
    "documents": (lambda device: DocumentMask(segments(device)), 19, None, None),
    "window, cap": (lambda device: DocumentMask(segments(device)), 19, 4, 3.0),
    "all, window": (lambda device: FullMask(19, device), 19, 3, None),
    "encoder": (lambda device: SegmentMask(segments(device)), 19, None, None),
    "the last ones": (lambda device: CausalMask(19, device, queries=7), 7, None, None),
    "one after the other": (lambda device: CausalMask(19, device, queries=1), 1, None, None),
}


def check(
    mask: Mask, queries: int, keys: int, dtype: torch.dtype, device: str, window=None, softcap=None, heads=(2, 1), **options
) -> None:
    rows, strided, scale = options.get("rows", 2), options.get("strided", False), options.get("scale")
    shapes = ((rows, queries, heads[0], 6), (rows, keys, heads[1], 6), (rows, keys, heads[1], 5))
    tensors = [random(*shape, dtype=dtype, device=device, seed=seed, strided=strided) for seed, shape in enumerate(shapes)]

    def attention(q, k, v, kernel):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # as a model has them: heads before tokens, in memory behind
        if kernel is Kernel.torch:
            return plain(q, k, v, mask.dense(window), None, scale, softcap, 0.0)
        return flash_attention(q, k, v, form_of(mask, window), scale=scale, window=window, softcap=softcap)

    agree(attention, tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_each_mask(case: str, device: str) -> None:
    mask, queries, window, softcap = CASES[case]
    check(mask(device), queries, 19, torch.float64, device, window, softcap)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS[1:])
def test_each_format(dtype: torch.dtype, device: str) -> None:
    check(DocumentMask(segments(device)), 19, 19, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("length", "heads"), [(1, (1, 1)), (3, (3, 3)), (33, (1, 1)), (17, (4, 2))])
def test_lengths_and_shared_heads(length: int, heads: tuple[int, int], device: str) -> None:
    check(CausalMask(length, device), length, length, torch.float64, device, heads=heads)


@pytest.mark.parametrize("device", DEVICES)
def test_apart_in_memory_another_scale_and_no_rows(device: str) -> None:
    check(CausalMask(5, device), 5, 5, torch.float64, device, strided=True, scale=0.7, softcap=2.0, heads=(2, 2))
    check(CausalMask(5, device), 5, 5, torch.float64, device, rows=0)


@pytest.mark.parametrize("device", DEVICES)
def test_texts_without_a_common_order(device: str) -> None:
    """Cross-attention; the third query's document has no keys: it sees nothing, gives zeros and learns nothing."""
    of_queries = torch.tensor([[1, 1, 2], [1, 1, 1]], device=device)
    of_keys = torch.tensor([[1, 1, 1, 3, 3], [1, 1, 1, 1, 0]], device=device)
    check(SegmentMask(of_queries, of_keys), 3, 5, torch.float64, device)
    assert form_of(SegmentMask(of_queries, of_keys), 2) is None  # how far apart they are nobody can say


@pytest.mark.parametrize("device", DEVICES)
def test_where_it_is_taken(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it computes what is asked; everything else stays PyTorch's, and is right."""
    taken = []

    def spy(*args, **options):
        taken.append(True)
        return flash_attention(*args, **options)

    monkeypatch.setattr("llmfactory.kernel.attention.flash_attention", spy)
    q, k, v = (random(2, 2, 5, 4, dtype=torch.float32, device=device, seed=seed) for seed in range(3))
    prefix = PrefixMask(
        torch.tensor([[1, 1, 0, 0, 0]] * 2, device=device).bool(), torch.ones(2, 5, dtype=torch.int64, device=device)
    )
    bias = random(1, 2, 5, 5, dtype=torch.float32, device=device)
    asked = [(CausalMask(5, device), None, True), (prefix, None, False), (CausalMask(5, device), bias, False)]
    for mask, added, expected in asked:
        taken.clear()
        y = attend(q, k, v, mask, added, kernel=Kernel.triton)
        assert bool(taken) is expected
        torch.testing.assert_close(y, attend(q, k, v, mask, added), rtol=1e-5, atol=1e-5)
