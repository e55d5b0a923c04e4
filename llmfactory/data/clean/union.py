"""Clusters: documents that hang together by pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def clusters(left: Int64, right: Int64) -> tuple[Int64, Int64]:
    """Pairs [E] of numbers -> every number that comes in one, and the smallest of its cluster.

    Union-find for all pairs at once: the larger root of each pair is hung below the smaller one, then every path is halved until
    it has no more than one step. What each number finds does not depend on the order of the pairs.
    """
    numbers, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    a, b = places[: len(left)], places[len(left) :]
    parent = np.arange(len(numbers))
    while True:
        low, high = np.minimum(parent[a], parent[b]), np.maximum(parent[a], parent[b])
        apart = low != high
        if not apart.any():
            return numbers, numbers[parent]
        a, b = a[apart], b[apart]
        np.minimum.at(parent, high[apart], low[apart])
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
