"""Which pages certainly repeat nothing too much: bounds on what the rules count, made with NumPy for many pages at once.

Words and pairs of words are looked at by their hashes, small ones in tables: where two fall together something seems more frequent
than it is, so the bounds hold with any hash, and a page that they say nothing of is counted word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.page import Page

Hashes = NDArray[np.uint64]
Int64 = NDArray[np.int64]
WORDS = 1 << 15
"""What is looked at together at most, but for a longer page: it stays in the processor's cache."""
BITS = 18
"""Of a hash that is looked up in a table."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def harmless(pages: Sequence[Page], top: Sequence[tuple[int, float]], duplicate: Sequence[tuple[int, float]]) -> list[bool]:
    """Of each page whether it is certain that no sequence of n words has more than its share of the characters: the most frequent one
    (`top`, with the spaces in it), and all that stood above already (`duplicate`), each as [(n, share)]; n is 2 at
    least."""
    found = [False] * len(pages)
    spaced = [i for i, page in enumerate(pages) if not page.unspaced and page.words]
    for batch in _batches(pages, spaced):
        for i, sure in zip(batch, _harmless([pages[i] for i in batch], top, duplicate), strict=True):
            found[i] = bool(sure)
    return found


def _batches(pages: Sequence[Page], indices: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    words = 0
    for i in indices:
        if batch and words + len(pages[i].words) > WORDS:
            yield batch
            batch, words = [], 0
        batch.append(i)
        words += len(pages[i].words)
    if batch:
        yield batch


def _harmless(
    pages: Sequence[Page], top: Sequence[tuple[int, float]], duplicate: Sequence[tuple[int, float]]
) -> NDArray[np.bool_]:
    sizes = np.array([len(page.text) for page in pages])
    numbers = np.array([len(page.words) for page in pages])
    starts, total = np.cumsum(numbers) - numbers, int(numbers.sum())
    lengths = np.fromiter(map(len, chain.from_iterable(page.words for page in pages)), np.int64, total)
    words = np.fromiter(map(hash, chain.from_iterable(page.words for page in pages)), np.int64, total).view(np.uint64)
    upto = np.concatenate([[0], np.cumsum(lengths)])
    pairs = _counts(words * FACTOR + np.roll(words, -1) + np.repeat(np.arange(len(pages), dtype=np.uint64), numbers))
    pairs[starts + numbers - 1] = 0  # the last word of a page begins none
    sure = np.ones(len(pages), bool)
    for n, share in top:
        characters = upto[n:] - upto[:-n] + n - 1
        most = np.zeros(total, np.int64)
        np.multiply(_least(pairs, n), characters, out=most[: len(characters)])
        sure &= np.maximum.reduceat(most, starts) <= share * sizes
    if duplicate:  # longer sequences that come twice are made of the shortest ones that do
        n, share = min(n for n, _ in duplicate), min(share for _, share in duplicate)
        begins, covered = _least(pairs, n) > 1, np.zeros(total, np.int64)
        for step in range(n):
            covered[step : step + len(begins)] |= begins
        sure &= np.add.reduceat(covered * lengths, starts) <= share * sizes
    return sure


def _least(pairs: Int64, n: int) -> Int64:
    """No fewer times than each sequence of n words comes: as often as the rarest of its pairs. 0: the page ends within it."""
    count = max(0, len(pairs) - n + 1)
    found = pairs[:count]
    for step in range(1, n - 1):
        found = np.minimum(found, pairs[step : step + count])
    return found


def _counts(hashes: Hashes) -> Int64:
    """How often each comes, at least."""
    hashes = (hashes ^ (hashes >> np.uint64(32))) * FACTOR
    ordered = np.sort(hashes)
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    runs = np.diff(begins, append=len(ordered))
    several = np.flatnonzero(runs > 1)
    several = several[
        np.argsort(runs[several], kind="stable")
    ]  # of those in one place of the table the last one, the largest, stays
    table = np.ones(1 << BITS, np.int64)
    shift = np.uint64(64 - BITS)
    table[ordered[begins[several]] >> shift] = runs[several]
    found: Int64 = table[hashes >> shift]
    return found
