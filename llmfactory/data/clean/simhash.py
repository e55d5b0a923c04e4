"""Near copies by fingerprints: sums of +1 and -1 by the bits of n-gram hashes, of which the signs are kept (Charikar 2002).

Documents at an angle t of their n-gram counts differ in 64 t / pi bits on average. If two differ in at most d of them and the
fingerprint is cut into b blocks, b - d blocks at least are equal in both (Manku et al. 2007, section 3): each choice of b - d
blocks is a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.buckets import alike_in_buckets, one_of_each_cluster
from llmfactory.data.clean.comparison import Comparison, Copies, Evidence, Int64, Keys
from llmfactory.data.clean.dedup_spec import Simhash
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import UNICODE, Hashes, mixed, shingles
from llmfactory.data.clean.step import Drop, Outcome

BITS = 64
VERSION = 1


class SimhashComparison(Comparison):
    def __init__(self, spec: Simhash) -> None:
        self.spec = spec
        self.seed = mixed(np.array([spec.seed], np.uint64))
        edges = np.linspace(0, BITS, spec.blocks + 1).astype(int).tolist()
        blocks = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
        self.masks = np.array([sum(chosen) for chosen in combinations(blocks, spec.blocks - spec.distance)], np.uint64)
        """[M], the bits of each key."""

    def fingerprint(self) -> str:
        return f"{VERSION} {UNICODE} {self.spec!r}"

    def keys(self, pages: Sequence[Page]) -> Keys:
        """A key for each choice of blocks; none of a page without letters and digits."""
        fingerprints, some = self.fingerprints([page.text for page in pages])
        key = mixed((fingerprints[some, None] & self.masks) + mixed(np.arange(len(self.masks), dtype=np.uint64)))
        page = np.repeat(np.flatnonzero(some), len(self.masks))
        return Keys(page, np.tile(np.arange(len(self.masks)), int(some.sum())), key.reshape(-1), fingerprints)

    def fingerprints(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.bool_]]:
        """[P], and [P] whether a text has any n-gram."""
        ones, total = np.zeros((len(texts), BITS), np.int64), np.zeros(len(texts), np.int64)
        for chunk in shingles(texts, self.spec.ngram, self.spec.unit):
            values = mixed(chunk.hashes ^ self.seed)
            sizes = np.diff(chunk.starts, append=len(values))
            ones[chunk.documents] += _ones(values, chunk.starts)
            total[chunk.documents] += sizes
        signs = 2 * ones > total[:, None]
        return np.packbits(signs, axis=1, bitorder="little").view("<u8").reshape(-1).astype(np.uint64), total > 0

    def copies(self, key: NDArray[np.uint64], document: Int64, item: Int64, evidence: Evidence) -> Copies:
        def alike(left: Int64, right: Int64) -> NDArray[np.bool_]:
            differ = np.ascontiguousarray(evidence(left) ^ evidence(right))  # type: ignore[operator]
            bits = np.unpackbits(differ.view(np.uint8).reshape(len(left), -1), axis=1)
            return np.asarray(bits.sum(axis=1) <= self.spec.distance)

        return alike_in_buckets(key, document, alike)

    def verdicts(self, copies: Copies, evidence: Evidence) -> Copies:
        return one_of_each_cluster(copies)

    def apply(self, page: Page, items: Int64) -> Outcome:
        return Drop("nearly the same as an earlier document")


def _ones(values: Hashes, starts: Int64) -> Int64:
    """How many of each document's hashes have each bit: [D, 64]."""
    bits = np.unpackbits(values.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    return np.add.reduceat(bits, starts, axis=0, dtype=np.int64)
