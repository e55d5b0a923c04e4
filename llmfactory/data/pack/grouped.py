"""Rows of one document, those of similar length drawn one after the other, so that a batch needs little padding.

Sorted by length, rows fall into groups of some hundreds. An epoch takes the groups in random order, and the rows of each in
random order. A batch is as wide as its longest row over all processes: it depends on the step alone, like the samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.order import Order, mix, seed_of
from llmfactory.data.pack.plan import plan
from llmfactory.data.pack.rows import Drawn, Int64, Rows, laid_out

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.spec import Grouped
    from llmfactory.data.tokens import TokenFile


class GroupedRows(Rows):
    # Padding stands on the right, where a causal mask hides it from every token that counts.
    isolated = False
    ragged = True

    def __init__(self, spec: Grouped, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.spec, self.plan = spec, plan(tokens, "grouped", seq_len, by_length)

    def __len__(self) -> int:
        return len(self.plan.size)

    def documents(self, row: int) -> list[int]:
        return self.plan.documents(row, self.offsets)

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        return laid_out(self.file, *self.plan.pieces(indices), self.width(indices))

    def width(self, indices: Int64) -> int:
        return self.spec.width(int(self.plan.size[indices].max()), self.seq_len)

    def order(self, seed: int) -> Drawn:
        return GroupOrder(len(self), self.spec.group, seed)

    def places(self) -> int:
        return places_in_groups(self.spec, self.plan.size, self.seq_len)


def places_in_groups(spec: Grouped, size_R: Int64, seq_len: int) -> int:
    """Places of all rows, of these sizes, if a batch takes a group."""
    starts = np.arange(0, len(size_R), spec.group)
    longest = np.maximum.reduceat(size_R, starts) if len(size_R) else size_R
    rows_G = np.diff(np.append(starts, len(size_R)))
    return int((np.array([spec.width(size, seq_len) for size in longest.tolist()], np.int64) * rows_G).sum())


def by_length(size_P: Int64, seq_len: int) -> tuple[Int64, Int64]:
    """From the shortest to the longest, a row each."""
    return np.argsort(size_P, kind="stable"), np.ones(len(size_P), np.int64)


class GroupOrder:
    """Like `Order`, but that `group` rows with numbers next to each other stay together.

    What is left when the groups are full is a short group at the end of the epoch; where in the rows it lies is drawn.
    """

    def __init__(self, size: int, group: int, seed: int) -> None:
        self.size, self.group, self.seed = size, group, seed
        self.full, self.rest = divmod(size, group)
        self.groups = Order(self.full, seed_of(seed, "groups")) if self.full else None
        self.within = Order(group, seed_of(seed, "within"))
        self.short = Order(self.rest, seed_of(seed, "short")) if self.rest else None

    def __call__(self, indices: Int64) -> Int64:
        """Row number of each global sample number."""
        epoch, place = np.asarray(indices, np.int64) // self.size, np.asarray(indices, np.int64) % self.size
        drawn = mix(epoch.astype(np.uint64) + np.uint64(seed_of(self.seed, "gap")))
        gap = (drawn % np.uint64(self.full + 1)).astype(np.int64)  # the short group stands before this one
        rows = np.empty_like(place)
        whole = place < self.full * self.group
        if self.groups is not None:
            turn = (epoch * self.full + place // self.group)[whole]
            number = self.groups(turn)
            inner = self.within(turn * self.group + place[whole] % self.group)
            rows[whole] = number * self.group + inner + np.where(number >= gap[whole], self.rest, 0)
        if self.short is not None:
            inner = self.short((epoch * self.rest + place - self.full * self.group)[~whole])
            rows[~whole] = gap[~whole] * self.group + inner
        return rows
