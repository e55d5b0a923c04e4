"""Buckets: documents with an equal key, which may be alike and are compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.comparison import Copies, Int64
from llmfactory.data.clean.union import clusters

Alike = Callable[[Int64, Int64], NDArray[np.bool_]]
"""Numbers of documents, pair by pair [C] and [C] -> whether those are alike."""
PAIRS = 2048
"""What is compared at once."""


def alike_in_buckets(key: NDArray[np.uint64], document: Int64, alike: Alike) -> Copies:
    """Pairs of alike documents among those of each bucket, given sorted by (key, document).

    All of a bucket are compared with its first one; those that are not alike make up a smaller bucket, and so on. A bucket of n
    documents in c groups takes at most n c comparisons: one of equal documents n, not n^2.
    """
    documents, number = np.unique(document, return_inverse=True)
    n = len(documents)
    found = [np.empty(0, np.int64)]
    rest = np.arange(len(key))
    while len(rest):
        keys = key[rest]
        begins = np.concatenate([[True], keys[1:] != keys[:-1]])
        first = rest[np.maximum.accumulate(np.where(begins, np.arange(len(rest)), 0))]
        others = document[rest] != document[first]
        rest, first = rest[others], first[others]
        pairs, back = np.unique(number[first] * n + number[rest], return_inverse=True)  # two may share several buckets
        chunks = [pairs[at : at + PAIRS] for at in range(0, len(pairs), PAIRS)]
        same = np.concatenate([np.empty(0, bool), *(alike(documents[chunk // n], documents[chunk % n]) for chunk in chunks)])
        found.append(pairs[same])
        rest = rest[~same[back]]
    pairs = np.unique(np.concatenate(found))
    return Copies(documents[pairs % n] if n else pairs, np.zeros(len(pairs), np.int64), documents[pairs // n] if n else pairs)


def one_of_each_cluster(copies: Copies) -> Copies:
    """Pairs -> every document but the first of each cluster, a copy of that one."""
    document, first = clusters(copies.document, copies.first)
    later = document != first
    return Copies(document[later], np.zeros(int(later.sum()), np.int64), first[later])
