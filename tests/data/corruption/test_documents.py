"""Documents taken out of rows, made to fit, and laid into rows again."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.data.corruption.chance import row_keys, uniform
from llmfactory.data.corruption.documents import Layout, documents, fitting
from llmfactory.data.corruption.ragged import starts

END = 256


@pytest.mark.parametrize("goes_on", [False, True])
def test_the_text_without_end_tokens(rows, texts, goes_on: bool) -> None:
    batch = rows(20, [[5, 1, 8], [20], [], [3, 3]], goes_on=goes_on)
    found = documents(batch, row_keys(0, np.arange(4)), END)
    expected = [(row, text) for row in range(4) for text in texts(batch, row) if text]
    pieces = [
        found.tokens_N[start : start + length].tolist()
        for start, length in zip(starts(found.length_P), found.length_P, strict=True)
    ]
    assert list(zip(found.row_P.tolist(), pieces, strict=True)) == expected
    assert batch["tokens"].flatten()[found.place_N].tolist() == found.tokens_N.tolist()


def test_an_end_token_within_a_text_is_text(rows) -> None:
    """Rows of one text (`isolate=false`) hold the ends of their documents."""
    batch = rows(9, [[9]])
    batch["tokens"][0, 4] = END
    assert END in documents(batch, row_keys(0, np.arange(1)), END).tokens_N


def test_random_numbers_belong_to_places(rows) -> None:
    batch, keys = rows(20, [[5, 9], [20]]), row_keys(0, np.arange(2))
    found = documents(batch, keys, END)
    assert found.uniform(3).tolist() == uniform(keys, 20, 3).ravel()[found.place_N].tolist()
    shorter = found.shortened(np.array([2, 0, 5]))
    assert shorter.length_P.tolist() == [2, 5]
    assert shorter.row_P.tolist() == [0, 1]
    assert shorter.uniform(3).tolist() == found.uniform(3)[[0, 1, 12, 13, 14, 15, 16]].tolist()
    assert shorter.uniform_pieces(1).tolist() == uniform(keys, 20, 1).ravel()[[1, 21]].tolist()


def slow_fitting(lengths, row_of, kinds, needs):
    """Piece by piece; once one does not fit whole, it gets what is left of the row and those behind it nothing."""
    lengths = list(lengths)
    for table, room in needs:
        for row in set(row_of):
            left = room
            for piece in [piece for piece, owner in enumerate(row_of) if owner == row]:
                size = table[kinds[piece]][lengths[piece]]
                if size <= left:
                    left -= size
                    continue
                fits = [n for n in range(lengths[piece] + 1) if left > 0 and table[kinds[piece]][n] <= left]
                lengths[piece], left = max(fits, default=0), -1
    return lengths


@pytest.mark.parametrize("room", [6, 15, 40])
def test_fitting(room: int) -> None:
    numbers = np.random.default_rng(room)
    plain = np.where(np.arange(30) > 0, np.arange(30) + 1, 0)
    wide = np.where(np.arange(30) > 1, np.arange(30) + np.arange(30) // 4 + 3, 0)
    row_of = np.sort(numbers.integers(0, 30, 150))
    lengths, kinds = numbers.integers(0, 12, 150), numbers.integers(0, 2, 150)
    needs = [(np.stack([plain, wide]), room), (np.stack([wide, wide]), room + 3)]
    found = fitting(lengths, row_of, kinds, needs)
    assert found.tolist() == slow_fitting(lengths.tolist(), row_of.tolist(), kinds.tolist(), needs)
    assert 0 < found.sum() < lengths.sum() or room == 40
    for table, most in needs:
        assert all(table[kinds, found][row_of == row].sum() <= most for row in range(30))


def test_nothing_is_cut_where_there_is_room() -> None:
    lengths, table = np.array([3, 4, 5]), np.arange(10)[None]
    assert fitting(lengths, np.array([0, 0, 1]), np.zeros(3, int), [(table, 7)]).tolist() == [3, 4, 5]


def test_layout() -> None:
    layout = Layout(np.array([2, 3, 4]), np.array([0, 0, 2]), 3, 6)
    assert layout.segments.tolist() == [[1, 1, 2, 2, 2, 0], [0] * 6, [1, 1, 1, 1, 0, 0]]
    assert layout.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6, [0, 1, 2, 3, 0, 0]]
    assert layout.start_P.tolist() == [0, 2, 12]
    assert layout.filled(9, layout.start_P, np.array([1, 2, 3]))[2].tolist() == [3, 9, 9, 9, 9, 9]
