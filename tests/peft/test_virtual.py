"""Virtual tokens in batches, against putting them in by hand, one document after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfactory.core.branches import BranchMask
from llmfactory.core.context import (
    CausalMask,
    Context,
    DocumentMask,
    FullMask,
    Mask,
    PermutationMask,
    PrefixMask,
    RecentMask,
    SegmentMask,
    Source,
    StreamsMask,
)
from llmfactory.peft.virtual import insert, insert_into_source, spread

FIRST_ID = 100
SEGMENTS = torch.tensor([[1, 1, 2, 2, 2, 3, 0], [0, 0, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 2, 1, 1, 0]])
TOKENS = torch.arange(28).view(4, 7)


def by_hand(count: int) -> list[list[tuple[int, int, int]]]:
    """(id, position, document) of each column of each row; -1 for the id of padding."""
    rows = []
    for tokens, segments in zip(TOKENS.tolist(), SEGMENTS.tolist(), strict=True):
        row, before, position = [], 0, 0
        for token, segment in zip(tokens, segments, strict=True):
            if segment and segment != before:
                row += [(FIRST_ID + number, number, segment) for number in range(count)]
                position = 0
            row.append((token, position + count, segment))
            position += 1
            before = segment
        rows.append(row)
    width = max(map(len, rows))
    return [row + [(-1, 0, 0)] * (width - len(row)) for row in rows]


def positions_of(segments: Tensor) -> Tensor:
    found = torch.zeros_like(segments)
    for column in range(1, segments.shape[1]):
        found[:, column] = torch.where(segments[:, column] == segments[:, column - 1], found[:, column - 1] + 1, 0)
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_each_document_gets_its_own(count: int) -> None:
    context = Context(positions_of(SEGMENTS), DocumentMask(SEGMENTS), segments=SEGMENTS)
    tokens, changed, places = insert(TOKENS, context, count, FIRST_ID)
    assert places is not None
    assert changed.segments is not None
    for row, columns in enumerate(by_hand(count)):
        for column, (token, position, segment) in enumerate(columns):
            assert changed.segments[row, column] == segment
            if segment:
                assert tokens[row, column] == token
                assert changed.positions[row, column] == position
    assert torch.equal(tokens.gather(1, places), TOKENS)
    assert torch.equal(changed.mask.dense(), DocumentMask(changed.segments).dense())  # type: ignore[arg-type]


def test_rows_without_documents_are_one_text() -> None:
    tokens, changed, places = insert(TOKENS, Context(torch.arange(7).expand(4, 7), CausalMask(7)), 2, FIRST_ID)
    assert tokens[:, :3].tolist() == [[100, 101, row * 7] for row in range(4)]
    assert changed.positions.tolist() == [list(range(9))] * 4
    assert changed.segments is None
    assert changed.mask.is_causal
    assert torch.equal(places, torch.arange(2, 9).expand(4, 7))  # type: ignore[arg-type]


def masks(segments: Tensor) -> dict[str, tuple[Mask, Mask]]:
    """By kind, of rows and of the same rows with one token before each document, made from scratch."""
    wide = spread(segments, 1).segments_BN
    moved = spread(segments, 1).moved
    prefix, order = (positions_of(segments) < 2).long(), torch.randint(0, 9, segments.shape)

    def streams(place: Tensor, own: Tensor) -> StreamsMask:
        return StreamsMask(PermutationMask(place, own, False), PermutationMask(place, own, True), own.shape[1])

    return {
        "document": (DocumentMask(segments), DocumentMask(wide)),
        "segment": (SegmentMask(segments), SegmentMask(wide)),
        "prefix": (PrefixMask(prefix, segments), PrefixMask(moved(prefix, 1), wide)),
        "permutation": (PermutationMask(order, segments, True), PermutationMask(moved(order), wide, True)),
        "branches": (
            BranchMask(segments, order % 3, positions_of(segments)),
            BranchMask(wide, moved(order % 3), spread(segments, 1).positions(positions_of(segments))),
        ),
        "streams": (streams(order, segments), streams(moved(order), wide)),
    }


@pytest.mark.parametrize("kind", ["document", "segment", "prefix", "permutation", "branches", "streams"])
def test_the_text_sees_itself_as_before(kind: str) -> None:
    before, after = masks(SEGMENTS)[kind]
    _, changed, places = insert(TOKENS, Context(positions_of(SEGMENTS), before, segments=SEGMENTS), 1, FIRST_ID)
    assert places is not None
    got, want, wide = changed.mask.dense(), after.dense(), places.shape[1] + 3
    assert torch.equal(got, want)  # type: ignore[arg-type]
    for row in range(4):  # the text's own part of it is what it was
        streams = [places[row] + stream * wide for stream in range(before.streams)]
        assert torch.equal(got[row, 0][torch.cat(streams)][:, places[row]], before.dense()[row, 0])  # type: ignore[index]


def test_everything_sees_everything() -> None:
    _, changed, _ = insert(TOKENS, Context(torch.arange(7).expand(4, 7), FullMask(7)), 2, FIRST_ID)
    assert isinstance(changed.mask, FullMask)
    assert changed.mask.length == 9


def test_several_axes_of_positions_and_kinds_of_text() -> None:
    positions = torch.stack((torch.arange(7), torch.full((7,), 5)))[None].expand(4, 2, 7)
    types = torch.ones(4, 7, dtype=torch.long)
    _, changed, _ = insert(TOKENS, Context(positions, CausalMask(7), types=types), 2, FIRST_ID)
    assert changed.positions[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 5, 5, 5, 5, 5, 5, 5]]
    assert changed.types is not None
    assert changed.types[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_a_later_call_finds_them_among_the_keys() -> None:
    """Rows of three and five tokens, padded on the left, and one more."""
    keys = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    columns = torch.arange(6).expand(2, 6)
    mask = DocumentMask(keys[:, -1:], keys, columns[:, -1:], columns)
    context = Context(torch.tensor([[3], [5]]), mask, key_positions=torch.tensor([[0, 0, 0, 1, 2, 3], list(range(6))]))
    tokens, changed, places = insert(torch.tensor([[7], [8]]), context, 2, FIRST_ID)
    assert places is None
    assert tokens.tolist() == [[7], [8]]
    assert changed.positions.tolist() == [[5], [7]]
    assert changed.key_positions is not None
    assert changed.key_positions[:, 2:].tolist() == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]
    assert changed.mask.dense()[:, 0, 0].tolist() == [[False, False] + [True] * 6, [True] * 8]  # type: ignore[index]


def test_the_decoder_sees_those_of_its_documents() -> None:
    source_segments, written = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 2, 2]])
    inner = Context(positions_of(source_segments), SegmentMask(source_segments), segments=source_segments)
    source = Source(torch.tensor([[5, 6, 7, 0]]), inner, SegmentMask(written, source_segments))
    context = Context(positions_of(written), DocumentMask(written), segments=written, source=source)
    changed = insert_into_source(context, 2, FIRST_ID)
    assert changed.source is not None
    assert changed.source.tokens[0].tolist() == [100, 101, 5, 6, 100, 101, 7, 0]
    seen = changed.source.mask.dense()
    assert seen is not None
    assert seen[0, 0].long().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] + [[0, 0, 0, 0, 1, 1, 1, 0]] * 2
    assert changed.mask is context.mask


def test_masks_that_know_no_documents() -> None:
    with pytest.raises(TypeError, match="RecentMask"):
        insert(TOKENS, Context(TOKENS, RecentMask(CausalMask(7), 3)), 1, FIRST_ID)
    with pytest.raises(TypeError, match="PrefixMask says of earlier"):
        mask = PrefixMask(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 3), torch.ones(1, 3).long())
        insert(torch.ones(1, 1), Context(torch.ones(1, 1), mask, key_positions=torch.ones(1, 3)), 1, FIRST_ID)
