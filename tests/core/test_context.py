from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from llmfactory.core.context import (
    CausalMask,
    Context,
    DocumentMask,
    Documents,
    FullMask,
    Mask,
    PermutationMask,
    PrefixMask,
    RecentMask,
    SegmentMask,
    StreamsMask,
)


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


SEGMENTS = [[1, 1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1]]
PREFIX = [[1, 1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0]]
PLACES = [[0, 2, 1, 3, 0, 1, 0], [0, 0, 4, 1, 3, 0, 2]]


def same(b: int, t: int, s: int) -> bool:
    return SEGMENTS[b][t] == SEGMENTS[b][s]


def masks() -> dict[str, tuple[Mask, Callable[[int, int, int], bool]]]:
    """Each with its definition in words of one row, one query and one key."""
    segments, prefix, places = (torch.tensor(rows) for rows in (SEGMENTS, PREFIX, PLACES))
    content, query = (PermutationMask(places, segments, strict=strict) for strict in (False, True))
    return {
        "full": (FullMask(7), lambda b, t, s: True),
        "segments": (SegmentMask(segments), same),
        "causal": (CausalMask(7), lambda b, t, s: s <= t),
        "documents": (DocumentMask(segments), lambda b, t, s: same(b, t, s) and s <= t),
        "prefix": (PrefixMask(prefix, segments), lambda b, t, s: same(b, t, s) and (s <= t or PREFIX[b][s] == 1)),
        "content": (content, lambda b, t, s: same(b, t, s) and PLACES[b][s] <= PLACES[b][t]),
        "query": (query, lambda b, t, s: same(b, t, s) and PLACES[b][s] < PLACES[b][t]),
    }


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("name", masks())
def test_masks_by_their_definition(name: str, window: int | None) -> None:
    mask, sees = masks()[name]
    dense = mask.dense(window)
    assert (dense is None) is (name == "full" and window is None)
    if dense is None:
        return
    assert mask.dense(window) is dense, "built once"
    for b, t, s in itertools.product(range(2), range(7), range(7)):
        near = window is None or abs(t - s) < window
        assert bool(dense.expand(2, 1, 7, 7)[b, 0, t, s]) is (sees(b, t, s) and near)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", [1, 3])
def test_masks_of_the_last_queries(queries: int, window: int | None) -> None:
    """What cached decoding builds is the last rows of the whole mask."""
    segments, prefix = torch.tensor(SEGMENTS), torch.tensor(PREFIX)
    columns = torch.arange(7).expand(2, 7)
    last = (segments[:, -queries:], segments, columns[:, -queries:], columns)
    pairs = {
        "causal": (CausalMask(7), CausalMask(7, queries=queries)),
        "documents": (DocumentMask(segments), DocumentMask(*last)),
        "prefix": (PrefixMask(prefix, segments), PrefixMask(prefix[:, -queries:], last[0], prefix, *last[1:])),
    }
    for name, (whole, step) in pairs.items():
        want = whole.dense(window)[:, :, -queries:]
        got = step.dense(window)
        if got is None:
            assert (name, queries, window) == ("causal", 1, None)
            assert want.all()
        else:
            assert torch.equal(got.expand_as(want), want)
        assert not step.is_causal
        recent = RecentMask(step, 4).dense(window)
        assert recent is None or torch.equal(recent.expand(2, 1, queries, 4), want.expand(2, 1, queries, 7)[..., -4:])


def test_two_streams_read_the_keys_of_one() -> None:
    content, query = masks()["content"][0], masks()["query"][0]
    both = StreamsMask(content, query, 7)
    assert torch.equal(both.dense(), torch.cat((content.dense(), query.dense()), 2))
    assert torch.equal(both.dense(2), torch.cat((content.dense(2), query.dense(2)), 2))


def test_a_window_needs_an_order() -> None:
    with pytest.raises(ValueError, match="order"):
        FullMask().dense(3)
    with pytest.raises(ValueError, match="no common order"):
        SegmentMask(torch.ones(1, 3), torch.ones(1, 3)).dense(3)


def test_documents_stand_together_or_are_none() -> None:
    segments = torch.tensor(SEGMENTS)
    assert DocumentMask(segments).documents() == Documents([3, 3, 1, 2, 5], causal=True)
    assert SegmentMask(segments).documents() == Documents([3, 3, 1, 2, 5], causal=False)
    assert DocumentMask(torch.tensor([[1, 2, 1]])).documents() is None
    assert SegmentMask(torch.tensor([[1, 1, 2], [2, 1, 1]])).documents() == Documents([2, 1, 1, 2], causal=False)
    assert DocumentMask(segments, segments, segments, segments).documents() is None
    for name in ("full", "causal", "prefix", "content", "query"):
        assert masks()[name][0].documents() is None
