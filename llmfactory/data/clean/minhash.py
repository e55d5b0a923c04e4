"""Near copies by MinHash and locality-sensitive hashing (Broder 1997; Indyk & Motwani 1998; settings of Lee et al. 2022).

A hash function orders all n-grams; that two documents have the same first one has a chance of their Jaccard similarity. Here an
n-gram x of 32 mixed bits is ordered by a x modulo 2^32 with an odd a, which is one to one: as the bits of x are as good as
random, each n-gram is the first with an equal chance, whatever a is. The usual a x + b modulo a prime takes several
times as long and orders no better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.buckets import alike_in_buckets, one_of_each_cluster
from llmfactory.data.clean.comparison import Comparison, Copies, Evidence, Int64, Keys
from llmfactory.data.clean.dedup_spec import Minhash, Verify
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import UNICODE, Chunk, mixed, shingles
from llmfactory.data.clean.sketch import Sketches, jaccard
from llmfactory.data.clean.step import Drop, Outcome

Signatures = NDArray[np.uint32]
AT_ONCE = 8
"""Hash functions: their values of a chunk stay in the processor's cache."""
VERSION = 1


class MinhashComparison(Comparison):
    def __init__(self, spec: Minhash) -> None:
        self.spec = spec
        generator = np.random.default_rng(spec.seed)
        self.factors = generator.integers(1 << 31, size=spec.bands * spec.rows, dtype=np.uint32) * 2 + 1
        self.weights = generator.integers(1 << 63, size=spec.rows, dtype=np.uint64) * 2 + 1

    def fingerprint(self) -> str:
        return f"{VERSION} {UNICODE} {self.spec!r}"

    def keys(self, pages: Sequence[Page]) -> Keys:
        """A key for each band of a signature; none of a page without letters and digits."""
        sketches = Sketches(len(pages)) if self.spec.verify is Verify.sketch else None
        signatures, some = self.signatures([page.text for page in pages], sketches)
        bands = signatures.reshape(len(pages), self.spec.bands, self.spec.rows)
        key = mixed((bands * self.weights).sum(axis=2, dtype=np.uint64) + mixed(np.arange(self.spec.bands, dtype=np.uint64)))
        return Keys(
            page=np.repeat(np.flatnonzero(some), self.spec.bands),
            item=np.tile(np.arange(self.spec.bands), int(some.sum())),
            key=key[some].reshape(-1),
            evidence=self._evidence(signatures, sketches),
        )

    def signatures(self, texts: Sequence[str], sketches: Sketches | None = None) -> tuple[Signatures, NDArray[np.bool_]]:
        """[P, bands * rows] the least value of each hash function, and [P] whether a text has any n-gram."""
        least = np.full((len(texts), len(self.factors)), 0xFFFFFFFF, np.uint32)
        some = np.zeros(len(texts), bool)
        for chunk in shingles(texts, self.spec.ngram, self.spec.unit):
            self.lower(least, chunk)
            some[chunk.documents] = True
            if sketches:
                sketches.add(chunk)
        return least, some

    def lower(self, least: Signatures, chunk: Chunk) -> None:
        """Take the n-grams of a chunk into the signatures of its documents."""
        values = (chunk.hashes >> np.uint64(32)).astype(np.uint32)
        products = np.empty((AT_ONCE, len(values)), np.uint32)
        low = np.empty((len(self.factors), len(chunk.starts)), np.uint32)
        for at in range(0, len(self.factors), AT_ONCE):
            factors = self.factors[at : at + AT_ONCE]
            part = np.multiply(factors[:, None], values, out=products[: len(factors)])
            np.minimum.reduceat(part, chunk.starts, axis=1, out=low[at : at + len(factors)])
        least[chunk.documents] = np.minimum(least[chunk.documents], low.T)

    def _evidence(self, signatures: Signatures, sketches: Sketches | None) -> NDArray[np.generic] | None:
        """Of each hash 16 bits, which are equal by chance once in 65,536 times (Li & König 2010)."""
        if self.spec.verify is Verify.none:
            return None
        return sketches.table if sketches else signatures.astype(np.uint16)

    def copies(self, key: NDArray[np.uint64], document: Int64, item: Int64, evidence: Evidence) -> Copies:
        if self.spec.verify is Verify.none:
            return super().copies(key, document, item, evidence)

        def alike(left: Int64, right: Int64) -> NDArray[np.bool_]:
            a, b = evidence(left), evidence(right)
            similar = jaccard(a, b) if self.spec.verify is Verify.sketch else (a == b).mean(axis=1)
            return np.asarray(similar >= self.spec.threshold)

        return alike_in_buckets(key, document, alike)

    def verdicts(self, copies: Copies, evidence: Evidence) -> Copies:
        return one_of_each_cluster(copies)

    def apply(self, page: Page, items: Int64) -> Outcome:
        return Drop("nearly the same as an earlier document")
