"""Batches: which rows a process reads at which step.

The state is one number, the step: step s of batch size b reads the samples [s*b, (s+1)*b) of the global order (where the batch grows,
those behind the ones that the steps before it read: `core/sizes.py`), and each rank its share of them. So a run that resumes on another number of processes goes on with the samples that it would have seen.

Stretches of the order may be left out (`left_out`): then the steps read what is left, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.batch import IGNORE, NARROW, split
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.sizes import Sizes
from llmfactory.data.form.mismatched import OTHER
from llmfactory.data.mix.mix_order import MixOrder
from llmfactory.data.order import Stretch, passing_over

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.rows import Rows

AHEAD = 4096
"""Samples whose order is worked out together."""
TOGETHER = 1 << 15
"""Tokens that are read together, to be handed out step by step: a call for each small batch would take longer than the reading."""


def share(start: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """This rank's contiguous part of [start, stop); parts differ by at most one."""
    size = stop - start
    return start + size * rank // world, start + size * (rank + 1) // world


class StepLoader:
    """Endless: item i is this rank's share of the global batch of step start_step + i."""

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
        left_out: Sequence[Stretch] = (),
        sizes: Sizes | None = None,
    ) -> None:
        """`left_out`: stretches of the order that nobody reads, ascending and apart. `sizes`: rows of each step, where they are not
        all `batch_size`."""
        self.sizes = sizes or Sizes([(0, batch_size)])
        if self.sizes.least < world:
            problem = Problem(
                "trainer.batch_size",
                batch_size,
                f"{world} data-parallel processes need a row each",
                f"trainer.batch_size={world}",
            )
            raise ConfigError([problem])
        self.rows, self.batch_size, self.rank, self.world, self.start_step = rows, batch_size, rank, world, start_step
        self.order = rows.order(seed) if shuffle else None
        self.left_out = tuple(left_out)

    def sample_ids(self, step: int) -> NDArray[np.int64]:
        """Row numbers that this rank reads at a step."""
        found: NDArray[np.int64] = self._rows_of(self._samples_of(step, 1))[0]
        return found

    def step(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(samples of the global order, rows) of a step, over all ranks."""
        samples = self._samples_of(step, 1, (0, self.sizes.rows(step)))
        return samples[0], self._rows_of(samples)[0]

    def batch(self, step: int) -> Batch:
        """This rank's share of a step."""
        samples = self._samples_of(step, 1)
        if self.rows.ragged:
            return next(self._ragged(step, 1))
        return self.rows.draw(self._rows_of(samples)[0], samples[0])

    def drawn(self, steps: int) -> dict[str, float]:
        """Tokens (padding not counted) and epochs of each source of a mixture in the first so many steps, over all ranks.

        It follows from the order; nothing has been counted. A row counts as its source's rows do on average, so the tokens are
        exact after whole epochs.
        """
        found: dict[str, float] = {}
        if isinstance(self.order, MixOrder):
            read = np.array([self.sizes.before(steps)])
            counts = self.order.drawn(int(passing_over(read, self.left_out)[0]))
            for first, last in self.left_out:
                if first < passing_over(read, self.left_out)[0]:
                    counts = counts - (self.order.drawn(last) - self.order.drawn(first))
            for (name, rows), count in zip(self.rows.sources.items(), counts.tolist(), strict=True):
                found[f"tokens/{name}"] = round(count * rows.file.inputs / max(len(rows), 1))
                found[f"epochs/{name}"] = count / max(len(rows), 1)
        return found

    def __iter__(self) -> Iterator[Batch]:
        step = self.start_step
        while True:
            size, left = self.sizes.rows(step), self.sizes.alike(step)
            steps = max(1, AHEAD * self.world // size)
            steps = steps if left is None else min(steps, left)
            low, high = share(0, size, self.rank, self.world)
            # The order of many steps at once costs little more than that of one.
            if self.rows.ragged:
                yield from self._ragged(step, steps)
            else:
                samples = self._samples_of(step, steps)
                rows = self._rows_of(samples)
                together = max(1, TOGETHER // ((high - low) * self.rows.seq_len))
                for first in range(0, steps, together):
                    some = slice(first, first + together)
                    yield from split(self.rows.draw(rows[some].ravel(), samples[some].ravel()), high - low)
            step += steps

    def _ragged(self, step: int, steps: int) -> Iterator[Batch]:
        """Batches as wide as the longest row that any rank has."""
        size = self.sizes.rows(step)
        low, high = share(0, size, self.rank, self.world)
        samples = self._samples_of(step, steps, (0, size))
        for whole, numbers in zip(self._rows_of(samples), samples, strict=True):
            batch = self.rows.draw(whole[low:high], numbers[low:high])
            yield _widened(batch, self.rows.width(whole), self.rows.file.end_id)

    def _samples_of(self, step: int, steps: int, places: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """[steps, rows of this rank], numbers in the global order, of steps that have as many rows; `places`: other rows of each
        step."""
        size = self.sizes.rows(step)
        low, high = share(0, size, self.rank, self.world) if places is None else places
        first = self.sizes.before(step) + np.arange(steps, dtype=np.int64) * size
        return passing_over(first[:, None] + np.arange(low, high, dtype=np.int64), self.left_out)

    def _rows_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.order is None:
            return samples % len(self.rows)
        return self.order(samples.ravel()).reshape(samples.shape)


def held_out_batches(
    rows: Rows, *, batch_size: int, rank: int = 0, world: int = 1, limit: int | None = None, source: str | None = None
) -> Iterator[Batch]:
    """Every row once, in order, `batch_size` of them a step over all ranks; `limit`: only so many rows, spread evenly; `source`:
    of those, the ones of a source.

    Each rank gets the same number of batches, as collective operations need: where the last one has no row left for a rank,
    it gets a row of padding, which counts nothing.
    """
    count = len(rows) if limit is None else min(limit, len(rows))
    chosen = np.arange(count, dtype=np.int64) * len(rows) // max(count, 1)
    if source is not None:
        names = list(rows.sources)
        last = np.cumsum([len(part) for part in rows.sources.values()])
        chosen = chosen[last.searchsorted(chosen, side="right") == names.index(source)]
    for start in range(0, len(chosen), batch_size):
        low, high = share(start, min(start + batch_size, len(chosen)), rank, world)
        if low < high:
            yield rows.read(chosen[low:high])
        else:
            yield _padding(rows.read(chosen[:1]))


def held_out_by_source(
    rows: Rows, *, batch_size: int, rank: int = 0, world: int = 1, limit: int | None = None
) -> dict[str, Iterator[Batch]]:
    """The same rows for each source of a mixture by itself; those of one source under no name."""
    settings = {"batch_size": batch_size, "rank": rank, "world": world, "limit": limit}
    return {name: held_out_batches(rows, **settings, source=name or None) for name in rows.sources or [""]}  # type: ignore[arg-type]


def _widened(batch: Batch, width: int, end_id: int) -> Batch:
    """Padded on the right."""
    from torch.nn.functional import pad

    values = {"tokens": end_id, "labels": IGNORE, "rewards": math.nan}
    return {
        name: field
        if name in NARROW or name.startswith(OTHER)
        else pad(field, (0, width - field.shape[1]), value=values.get(name, 0))
        for name, field in batch.items()
    }


def _padding(batch: Batch) -> Batch:
    for name, field in batch.items():
        if name.endswith(("segments", "positions")):
            field.zero_()
        if name.endswith("labels"):
            field.fill_(IGNORE)
    return batch
