"""Pairwise covering: few rows in which any two values of two different factors stand together, if any row has both.

Greedy, one row at a time (Cohen et al. 1997, the AETG method, without its random numbers): take the first pair that no row has
yet, and of the rows with it the one that has most such pairs. The same candidates always give the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

Row = Mapping[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs(row: Row) -> list[Pair]:
    """All pairs of values in a row, in the order of its factors."""
    return list(combinations(row.items(), 2))


def cover(
    candidates: Iterable[Row], allowed: Callable[[Row], bool], wanted: Callable[[str, str], bool] = lambda a, b: True
) -> tuple[list[Row], list[Pair]]:
    """Allowed candidates that have every pair that an allowed candidate has; and the pairs that none has.

    `wanted` says of two factors whether their pairs count. Whether a row is allowed is asked only of those that might be taken.
    """
    having: dict[Pair, list[Row]] = defaultdict(list)
    for row in candidates:
        for pair in pairs(row):
            if wanted(pair[0][0], pair[1][0]):
                having[pair].append(row)
    left, rows, impossible = dict.fromkeys(having), [], []
    while left:
        pair = next(iter(left))
        ranked = sorted(having[pair], key=lambda row: -sum(other in left for other in pairs(row)))
        best = next((row for row in ranked if allowed(row)), None)
        if best is None:
            impossible.append(pair)
            del left[pair]
            continue
        rows.append(best)
        for done in pairs(best):
            left.pop(done, None)
    return rows, impossible
