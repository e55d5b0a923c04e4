"""Best-fit packing (Ding et al. 2024, "Fewer truncations improve language modeling", section 2.2): no document that fits into a
row is cut.

Documents longer than a row are cut into rows first, and what is left of them is packed like any other. Pieces are taken from the
longest to the shortest, each into the fullest row that has room for it (best-fit decreasing, Eilon and Christofides 1971).
As lengths are whole numbers up to T, pieces of one length and rows with one amount of room are dealt with all at once: the time
grows with the pairs of lengths and rooms that meet, and not with documents times rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.pack.plan import plan
from llmfactory.data.pack.rows import Int64, Rows, laid_out

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile


class BestFitRows(Rows):
    isolated = True

    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.plan = plan(tokens, "best_fit", seq_len, best_fit)

    def __len__(self) -> int:
        return len(self.plan.first) - 1

    def documents(self, row: int) -> list[int]:
        return self.plan.documents(row, self.offsets)

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        return laid_out(self.file, *self.plan.pieces(indices), self.seq_len)


def best_fit(size_P: Int64, seq_len: int) -> tuple[Int64, Int64]:
    """(pieces in the order of their rows [P], pieces of each row [R]); longer pieces stand first in a row."""
    descending_P = np.argsort(seq_len - size_P, kind="stable")
    row_P = np.empty(len(size_P), np.int64)  # of the pieces in that order
    rows, taken = _Rows(seq_len), 0
    counts = np.bincount(size_P, minlength=1)
    for size in np.flatnonzero(counts)[::-1].tolist():
        stop = taken + int(counts[size])
        while taken < stop:
            some = rows.take(size, stop - taken)
            row_P[taken : taken + len(some)] = some
            taken += len(some)
    order = np.argsort(row_P, kind="stable")
    return descending_P[order], np.bincount(row_P, minlength=rows.count)


class _Rows:
    """Rows that have been begun, by the room that they have left."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len, self.count = seq_len, 0
        self.with_room: dict[int, list[Int64]] = {}
        self.rooms: list[int] = []  # those of `with_room`, ascending

    def take(self, size: int, wanted: int) -> Int64:
        """The row of each of at most `wanted` pieces of one size, at least one: those with the least room that is enough.

        A row takes as many of them as it can, because with each it becomes the fullest that has room.
        """
        place = bisect_left(self.rooms, size)
        if place == len(self.rooms):
            each, room = self.seq_len // size, self.seq_len
            chosen = np.arange(self.count, self.count - (-wanted // each))
            self.count += len(chosen)
        else:
            room = self.rooms[place]
            each, rows = room // size, self._pop(place)
            needed = -(-wanted // each)
            chosen, left = rows[:needed], rows[needed:]
            self._push(room, left)
        pieces = min(wanted, len(chosen) * each)
        last = pieces - (len(chosen) - 1) * each  # of the last row, perhaps fewer than it could take
        self._push(room - each * size, chosen[:-1])
        self._push(room - last * size, chosen[-1:])
        return chosen.repeat(each)[:pieces]

    def _pop(self, place: int) -> Int64:
        room = self.rooms[place]
        rows = self.with_room[room].pop()
        if not self.with_room[room]:
            del self.with_room[room], self.rooms[place]
        return rows

    def _push(self, room: int, rows: Int64) -> None:
        if not room or not len(rows):
            return
        if room not in self.with_room:
            self.with_room[room] = []
            insort(self.rooms, room)
        self.with_room[room].append(rows)
