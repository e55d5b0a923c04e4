"""Sets of n-grams by their smallest hashes (bottom-k sketches, Cohen & Kaplan 2007), for comparing two of them closely.

The k smallest of a union of two sets are known from the k smallest of each. The share of them that is in both estimates the
Jaccard similarity J with a standard error of at most sqrt(J (1 - J) / k), and is J itself where the union has no more than k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.shingles import Chunk

Rows = NDArray[np.uint32]
SKETCH = 1024
"""Hashes of a document, k."""
NOTHING = 0xFFFFFFFF


class Sketches:
    """Of some documents, gathered chunk by chunk."""

    def __init__(self, documents: int) -> None:
        self.table: Rows = np.full((documents, SKETCH), NOTHING, np.uint32)
        """[P, k], sorted, filled up with NOTHING."""

    def add(self, chunk: Chunk) -> None:
        values = np.minimum(chunk.hashes >> np.uint64(32), NOTHING - 1).astype(np.uint32)
        for document, part in zip(chunk.documents.tolist(), np.split(values, chunk.starts[1:]), strict=True):
            row = self.table[document]
            least = np.unique(np.concatenate([row[row != NOTHING], part]))[:SKETCH]
            row[: len(least)] = least


def jaccard(left: NDArray[np.generic], right: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of sketches [C, k] and [C, k], pair by pair."""
    both = np.sort(np.concatenate([left, right], axis=1), axis=1)
    there = both != NOTHING
    twin = np.zeros_like(there)  # the second of two equal ones
    twin[:, 1:] = there[:, 1:] & (both[:, 1:] == both[:, :-1])
    rank = np.cumsum(there & ~twin, axis=1, dtype=np.int32)
    shared = (twin & (rank <= SKETCH)).sum(axis=1)
    return np.asarray(shared / np.clip(rank[:, -1], 1, SKETCH))
