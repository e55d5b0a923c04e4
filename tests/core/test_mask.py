"""A tile of a mask is that part of the whole one."""

from __future__ import annotations

import itertools

import pytest
import torch

from llmfactory.core.mask import (
    CausalMask,
    DocumentMask,
    FullMask,
    Mask,
    PermutationMask,
    PrefixMask,
    RecentMask,
    SegmentMask,
    StreamsMask,
)

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 0, 0], [0, 1, 1, 1, 1, 1, 2, 2]])
PREFIX = torch.tensor([[1, 1, 0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 1, 0]])
PLACES = torch.tensor([[0, 2, 1, 3, 0, 1, 0, 0], [0, 0, 4, 1, 3, 0, 2, 0]])
CUTS = [slice(0, 3), slice(3, 8), slice(2, 5), slice(0, 8)]
COLUMNS = torch.arange(8).expand(2, 8)


def masks() -> dict[str, Mask]:
    content, query = (PermutationMask(PLACES, SEGMENTS, strict=strict) for strict in (False, True))
    return {
        "full": FullMask(8),
        "segments": SegmentMask(SEGMENTS),
        "causal": CausalMask(8),
        "causal, the last queries": CausalMask(12, queries=8),
        "documents": DocumentMask(SEGMENTS),
        "documents, in another order": DocumentMask(SEGMENTS, SEGMENTS.flip(1), COLUMNS, COLUMNS.flip(1)),
        "prefix": PrefixMask(PREFIX, SEGMENTS),
        "content": content,
        "query": query,
        "streams": StreamsMask(content, query, 8),
        "recent": RecentMask(CausalMask(8), 8),
        "recent of more": RecentMask(DocumentMask(SEGMENTS), 5),
    }


@pytest.mark.parametrize("name", masks())
def test_a_tile_is_a_part(name: str) -> None:
    mask = masks()[name]
    width = mask.order()[1].shape[1]
    keys_of = [slice(cut.start, min(cut.stop, width)) for cut in CUTS if cut.start < width]
    queries_of = [*CUTS, slice(8, 16), slice(9, 12)] if mask.streams == 2 else CUTS
    for window, queries, keys in itertools.product((None, 1, 3), queries_of, keys_of):
        want = whole(mask, window, width)[:, :, queries, keys]
        tile = mask.tile(queries, keys)
        got = tile.dense(window)
        assert torch.equal(want, torch.ones_like(want) if got is None else got.expand_as(want))
        again = tile.tile(slice(1, 3), slice(0, 2)).dense(window)
        want = want[:, :, 1:3, 0:2]
        assert torch.equal(want, torch.ones_like(want) if again is None else again.expand_as(want))
        if width == 8 and "another" not in name:  # of whole rows in order
            reach = mask.reach(queries, window)
            beyond = [column for column in range(8) if not reach.start <= column < (8 if reach.stop is None else reach.stop)]
            assert not whole(mask, window, width)[:, :, queries, beyond].any()


def whole(mask: Mask, window: int | None, width: int) -> torch.Tensor:
    seen = mask.dense(window)
    return torch.ones(2, 1, 8, width, dtype=torch.bool) if seen is None else seen.expand(2, 1, -1, width)


def test_what_is_known_of_a_tile() -> None:
    """Fast paths of kernels, and columns that need not be looked at."""
    middle, last = slice(2, 5), slice(5, 8)
    assert CausalMask(8).tile(middle, middle).is_causal
    assert not CausalMask(8).tile(last, middle).is_causal
    assert CausalMask(8).tile(last, middle).dense() is None
    assert DocumentMask(SEGMENTS).tile(middle, middle).documents() is not None
    assert SegmentMask(SEGMENTS).tile(middle, middle).documents() is not None
    assert SegmentMask(SEGMENTS).tile(last, middle).documents() is None
    for mask in (CausalMask(8), DocumentMask(SEGMENTS)):
        assert mask.reach(middle) == slice(0, 5)
        assert mask.reach(middle, 2) == slice(1, 5)
    assert SegmentMask(SEGMENTS).reach(middle) == slice(0, None)
    assert FullMask(8).reach(middle, 2) == slice(1, 6)


def test_two_texts_have_no_common_order() -> None:
    mask = SegmentMask(SEGMENTS, SEGMENTS[:, :5]).tile(slice(1, 3), slice(2, 5))
    assert torch.equal(mask.dense(), SEGMENTS[:, None, 1:3, None] == SEGMENTS[:, None, None, 2:5])
    with pytest.raises(ValueError, match="no common order"):
        mask.dense(2)
    assert FullMask().tile(slice(0, 2), slice(0, 3)).dense() is None


def test_a_tile_is_of_one_stream() -> None:
    with pytest.raises(ValueError, match="both streams"):
        masks()["streams"].tile(slice(4, 12), slice(0, 8))
