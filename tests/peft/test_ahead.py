"""Keys that stand ahead of a text's own."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, DocumentMask, FullMask
from llmfactory.inference.cache import KvCache
from llmfactory.peft.ahead import Ahead, AheadMask

PAIR = torch.randn(2, 3, 4), torch.randn(2, 3, 5)


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 2, count, 4), torch.randn(6, 2, count, 5)


def test_keys_of_a_text_stand_behind_them() -> None:
    k, v = tokens(7)
    keys, values = Ahead({1: lambda: PAIR}, None, first=True).append(1, k, v)
    assert torch.equal(keys, torch.cat((PAIR[0].expand(6, -1, -1, -1), k), 2))
    assert torch.equal(values, torch.cat((PAIR[1].expand(6, -1, -1, -1), v), 2))


def test_a_decoding_keeps_them_once() -> None:
    cache, (k, v), (more, others) = KvCache(11), tokens(7), tokens(1)
    Ahead({0: lambda: PAIR}, cache, first=True).append(0, k, v)
    keys, values = Ahead({}, cache, first=False).append(0, more, others)
    assert torch.equal(keys, torch.cat((PAIR[0].expand(6, -1, -1, -1), k, more), 2))
    assert torch.equal(values, torch.cat((PAIR[1].expand(6, -1, -1, -1), v, others), 2))


def test_what_parts_keep_passes_through() -> None:
    cache = KvCache(1)
    Ahead({}, cache, first=True).write("slot", (PAIR[0],))
    assert cache.read("slot") == (PAIR[0],)
    assert Ahead({}, cache, first=False).read("slot") == (PAIR[0],)
    alone = Ahead({}, None, first=True)
    alone.write("slot", (PAIR[0],))
    assert alone.read("slot") is None


def test_every_query_sees_them() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = AheadMask(DocumentMask(segments), 2).dense()
    assert seen is not None
    assert seen[0, 0, :, :2].all()
    assert torch.equal(seen[..., 2:], DocumentMask(segments).dense())  # type: ignore[arg-type]
    assert AheadMask(FullMask(), 2).dense() is None
    assert AheadMask(CausalMask(5, queries=1), 2).dense() is None


def test_a_window_counts_positions_in_the_document() -> None:
    """Two documents of three tokens: of a window of four each third token, at position 4, sees the second key ahead only."""
    segments, positions = torch.tensor([[1, 1, 1, 2, 2, 2]]), torch.tensor([[2, 3, 4, 2, 3, 4]])
    seen = AheadMask(DocumentMask(segments), 2, positions).dense(4)
    assert seen is not None
    assert seen[0, 0, :, :2].long().tolist() == [[1, 1], [1, 1], [0, 1]] * 2
    assert torch.equal(seen[..., 2:], DocumentMask(segments).dense(4))  # type: ignore[arg-type]


def test_they_have_no_place_in_the_row() -> None:
    mask = AheadMask(CausalMask(4), 2)
    with pytest.raises(ValueError, match="no place"):
        mask.order()
    with pytest.raises(TypeError, match="not cut"):
        mask.tile(slice(0, 2), slice(0, 2))
    assert not mask.is_causal
    assert mask.documents() is None
