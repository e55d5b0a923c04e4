"""The order of a mixture: which row of which source each sample is, as a pure function of (seed, sample number).

Samples come in strata of about 64. How many of a stratum are of a source is what is due at its end less what was due at its
beginning, both rounded (`Course.due`), so that no source is ever more than a sample away from its share there, however small that
is; strata are longer or shorter by a few samples for that. Within a stratum, sources are shuffled by a keyed hash. The k-th sample
of a source is the k-th of its own order, whatever other sources there are. Strata are worked out together, a block at a time.
Nothing is counted on the way: any sample is found from its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.mix.course import Course, Int64
from llmfactory.data.order import Words, mix, seed_of
from llmfactory.data.pack.rows import Drawn

STRATUM = 64
"""Samples within which the order of sources is random, about."""
BLOCK = 16 * STRATUM
"""Samples that are worked out together, about."""


class MixOrder:
    """`orders`: the own order of each source; `first_S`: number of its first row among the rows of all."""

    def __init__(self, course: Course, orders: Sequence[Drawn], first_S: Int64, seed: int) -> None:
        self.course, self.orders, self.first_S = course, orders, first_S
        self.key = np.uint64(seed_of(seed, "mixture"))
        self._block = lru_cache(16)(self._arranged)

    def __call__(self, indices: Int64) -> Int64:
        """Row number among the rows of all sources, of each global sample number."""
        source_N, draw_N = self.draws(indices)
        rows_N = np.empty_like(draw_N)
        for source, (order, first) in enumerate(zip(self.orders, self.first_S.tolist(), strict=True)):
            here = np.flatnonzero(source_N == source)
            if len(here):
                rows_N[here] = first + order(draw_N[here])
        return rows_N

    def draws(self, indices: Int64) -> tuple[Int64, Int64]:
        """(source, which sample of this source), of each global sample number. Raises UserError: there are not so many."""
        samples_N = np.asarray(indices, np.int64)
        block_N, start_N = self._blocks(samples_N)
        source_N, draw_N = np.empty_like(samples_N), np.empty_like(samples_N)
        for block in np.unique(block_N).tolist():
            here = block_N == block
            source_L, draw_L = self._block(block)
            place = (samples_N - start_N)[here]
            source_N[here], draw_N[here] = source_L[place], draw_L[place]
        return source_N, draw_N

    def insist_on(self, samples: int) -> None:
        """Raises UserError: there are not so many."""
        if self.course.end < np.inf and samples > (most := int(self.course.due(np.array([2**52])).sum())):
            raise UserError(
                f"all sources are used up after {most} samples, as data.mix.max_epochs limits each of them, and the run takes "
                f"{samples}: let a source be read more often, or take fewer steps (trainer.max_steps)"
            )

    def drawn(self, samples: int) -> Int64:
        """[S]: of the first so many samples, those of each source."""
        block_N, start_N = self._blocks(np.array([max(samples - 1, 0)]))
        source_L, _ = self._block(int(block_N[0]))
        inside = source_L[: samples - int(start_N[0])]
        drawn_S: Int64 = self._due(block_N)[0] + np.bincount(inside, minlength=len(self.orders))
        return drawn_S

    def _due(self, block_N: Int64) -> Int64:
        """[N, S]: samples of each source before these blocks."""
        return self.course.due(block_N * BLOCK)

    def _blocks(self, samples_N: Int64) -> tuple[Int64, Int64]:
        """(block of each sample, number of the block's first sample)."""
        block_N = samples_N // BLOCK  # or a neighbor: a block begins within some samples of a multiple
        while True:
            start_N, stop_N = self._due(block_N).sum(1), self._due(block_N + 1).sum(1)
            step_N = (stop_N <= samples_N).astype(np.int64) - (start_N > samples_N)
            if not step_N.any():
                return block_N, start_N
            self.insist_on(int(samples_N.max()) + 1)
            block_N = block_N + step_N

    def _arranged(self, block: int) -> tuple[Int64, Int64]:
        """(source, which sample of it) of each place of a block."""
        due_KS = self.course.due(block * BLOCK + np.arange(0, BLOCK + 1, STRATUM))
        counts_KS = np.diff(due_KS, axis=0)  # of each source in each stratum
        K, S = counts_KS.shape
        length = int(counts_KS.sum())
        # A random number for each place, behind the number of its stratum.
        block_key: Words = np.array([block], np.uint64) ^ self.key
        place_L: Words = np.arange(length, dtype=np.uint64)
        stratum_L = np.arange(K, dtype=np.uint64).repeat(counts_KS.sum(1))
        keys_L = (stratum_L << np.uint64(58)) | (mix(place_L + mix(block_key)) >> np.uint64(6))
        source_L = np.tile(np.arange(S), K).repeat(counts_KS.ravel())[np.argsort(keys_L, kind="stable")]
        # Each source's samples in ascending order: places by source, then by themselves.
        counts_S, draw_L = counts_KS.sum(0), np.empty_like(source_L)
        within_L = np.arange(length) - (counts_S.cumsum() - counts_S).repeat(counts_S)
        draw_L[np.argsort(source_L, kind="stable")] = due_KS[0].repeat(counts_S) + within_L
        return source_L, draw_L
