"""Sequences of n numbers of a longer one, as hashes of 64 bits, and which of them are among known ones.

The hash of a sequence is made from those of two shorter ones that cover it, whose lengths are a power of two: for sequences of n
numbers log2(n) steps over the whole array, whatever lengths are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
FACTORS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
SHIFT = np.uint64(29)


def hashes(numbers: Numbers, lengths: Iterable[int]) -> dict[int, Numbers]:
    """Of each length, which is 1 or more, the hash of every sequence of so many numbers that follow each other."""
    found: dict[int, Numbers] = {}
    known, size = _mixed(numbers, numbers), 1  # the hash of each sequence of `size`, a power of two
    for length in sorted(set(lengths)):
        while 2 * size <= length:
            known, size = _joined(known, size, size), 2 * size
        found[length] = _joined(known, size, length - size) ^ np.uint64(length)
    return found


def _joined(known: Numbers, size: int, shift: int) -> Numbers:
    """Of sequences of size + shift, from those of their first and of their last `size` numbers."""
    count = len(known) - shift
    return _mixed(known[:count], known[shift:]) if count > 0 else np.empty(0, np.uint64)


def _mixed(first: Numbers, last: Numbers) -> Numbers:
    total: Numbers = ((first * FACTORS[0]) ^ (last + FACTORS[1])) * FACTORS[1]
    total ^= total >> SHIFT
    total *= FACTORS[0]
    total ^= total >> SHIFT
    return total


def places(found: Numbers, known: Numbers) -> NDArray[np.int64]:
    """Of each its place among known ones, which are sorted; -1 where it is none."""
    if not len(known):
        return np.full(len(found), -1, np.int64)
    place = np.searchsorted(known, found).clip(max=len(known) - 1)
    return np.where(known[place] == found, place, -1)
