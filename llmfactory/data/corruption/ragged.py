"""Arithmetic on many short sequences at once, laid end to end.

P pieces of `length_P` elements are N elements in a row. Everything here is a handful of array operations for the whole batch: no
loop over documents or spans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.corruption.chance import Float64
from llmfactory.data.pack.rows import Int64

Bool = NDArray[np.bool_]


def starts(length_P: Int64) -> Int64:
    """Where each piece begins, [P]."""
    return length_P.cumsum() - length_P


def within(length_P: Int64) -> Int64:
    """Place of each element in its piece, [N]."""
    return np.arange(length_P.sum()) - starts(length_P).repeat(length_P)


def owners(length_P: Int64) -> Int64:
    """Number of the piece of each element, [N]."""
    return np.arange(len(length_P)).repeat(length_P)


def running(values_N: NDArray[np.generic], length_P: Int64) -> Int64:
    """Sum of the elements before each one in its piece, [N]."""
    before: Int64 = np.concatenate([[0], values_N.astype(np.int64).cumsum()])
    return before[:-1] - before[starts(length_P)].repeat(length_P)


def sums(values_N: NDArray[np.generic], length_P: Int64) -> Int64:
    """Sum over each piece, [P]."""
    before: Int64 = np.concatenate([[0], values_N.astype(np.int64).cumsum()])
    first_P = starts(length_P)
    sums_P: Int64 = before[first_P + length_P] - before[first_P]
    return sums_P


def ranks(key_N: Float64, length_P: Int64) -> Int64:
    """Place of each element among those of its piece by ascending key, [N]: of random keys, a random permutation."""
    order = np.lexsort((key_N, owners(length_P)))
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = within(length_P)
    return rank_N


def partition(total_P: Int64, parts_P: Int64, key_N: Float64) -> Int64:
    """Cut each total into that many parts of at least one, all ways being equally likely; the parts of all pieces, in order.

    1 <= parts <= total, or both are 0. `key_N`: sum(total_P) uniform numbers.
    """
    key_N = key_N.copy()
    begin_P = starts(total_P)[total_P > 0]
    key_N[begin_P] = -1.0  # a part begins where the piece does; the others begin at random places
    cut = np.flatnonzero(ranks(key_N, total_P) < parts_P.repeat(total_P))
    return np.diff(cut, append=len(key_N))
