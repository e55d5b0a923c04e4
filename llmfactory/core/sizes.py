"""How many rows each optimizer step has: a constant, or pieces of a run with one number each.

What a step reads follows from the steps before it: step s reads the samples [before(s), before(s) + rows(s)) of the global order, so
that a ramp changes neither the order nor what a run that goes on sees.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


class Sizes:
    def __init__(self, pieces: Sequence[tuple[int, int]]) -> None:
        """`pieces`: (first step, rows of each step from there on), ascending; the first begins at step 0."""
        if not pieces or pieces[0][0] != 0 or any(one >= other for (one, _), (other, _) in pairwise(pieces)):
            raise ValueError("pieces begin at step 0 and ascend")
        self._starts, self._rows = [start for start, _ in pieces], [rows for _, rows in pieces]
        lengths = [last - first for first, last in zip(self._starts, self._starts[1:], strict=False)]
        self._before = [0, *accumulate(length * rows for length, rows in zip(lengths, self._rows, strict=False))]

    @property
    def varies(self) -> bool:
        return len(self._rows) > 1

    @property
    def all(self) -> tuple[int, ...]:
        """Every number of rows that a step of some run may have, ascending."""
        return tuple(sorted(set(self._rows)))

    @property
    def least(self) -> int:
        return min(self._rows)

    def rows(self, step: int) -> int:
        """Rows of a step, over all processes; steps count from 0."""
        return self._rows[self._piece(step)]

    def before(self, step: int) -> int:
        """Rows of all steps before one."""
        piece = self._piece(step)
        return self._before[piece] + (step - self._starts[piece]) * self._rows[piece]

    def alike(self, step: int) -> int | None:
        """How many steps, this one included, have as many rows; None: all that follow."""
        piece = self._piece(step)
        return None if piece + 1 == len(self._starts) else self._starts[piece + 1] - step

    def _piece(self, step: int) -> int:
        return bisect_right(self._starts, step) - 1
