from __future__ import annotations

import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask


def test_causal_mask_is_the_lower_triangle() -> None:
    mask = CausalMask(4)
    assert mask.is_causal
    assert torch.equal(mask.dense()[0, 0], torch.tril(torch.ones(4, 4)).bool())


def test_document_mask_by_its_definition() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1]])
    mask = DocumentMask(segments)
    assert not mask.is_causal
    seen = mask.dense()
    for b in range(2):
        for t in range(6):
            for s in range(6):
                assert seen[b, 0, t, s] == (segments[b, t] == segments[b, s] and s <= t)


def test_document_mask_of_cached_decoding() -> None:
    """Two new tokens at columns 3 and 4, keys in cache columns 0..4, the first of them padding."""
    mask = DocumentMask(
        segments_BT=torch.tensor([[1, 1]]),
        segments_BS=torch.tensor([[0, 1, 1, 1, 1]]),
        order_BT=torch.tensor([[3, 4]]),
        order_BS=torch.arange(5)[None],
    )
    assert mask.dense()[0, 0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_a_context_is_changed_by_copy() -> None:
    context = Context(torch.zeros(1, 2, dtype=torch.long), CausalMask(2))
    tables = (torch.ones(1), torch.zeros(1))
    assert context.with_(rotary=tables).rotary is tables
    assert context.with_(bias=tables[0]).bias is tables[0]
    assert context.rotary is None
    assert context.bias is None
