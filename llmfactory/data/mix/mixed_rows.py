"""The rows of several sources as one: those of the first source, then those of the second, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.mix.course import Course, pieces
from llmfactory.data.mix.mix_order import MixOrder
from llmfactory.data.order import seed_of
from llmfactory.data.pack.concat import ConcatRows, read_streams
from llmfactory.data.pack.rows import Int64, Rows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.sizes import Sizes
    from llmfactory.data.mix.spec import MixSpec


class MixedRows(Rows):
    def __init__(self, sources: Mapping[str, Rows], spec: MixSpec, max_steps: int, sizes: Sizes) -> None:
        """`max_steps`, `sizes` of the steps: of the run, which weights may change with."""
        self._sources, self.spec, self.max_steps, self.sizes = sources, spec, max_steps, sizes
        self.parts = list(sources.values())
        self.seq_len, self.isolated = self.parts[0].seq_len, any(rows.isolated for rows in self.parts)
        self.file = self.parts[0].file  # whose end token is that of all
        self.last_S = np.cumsum([len(rows) for rows in self.parts])
        self.first_S = np.concatenate([[0], self.last_S[:-1]])

    def __len__(self) -> int:
        return int(self.last_S[-1])

    @property
    def sources(self) -> Mapping[str, Rows]:
        return self._sources

    @property
    def targets(self) -> int:
        return sum(rows.targets for rows in self.parts)

    def documents(self, row: int) -> list[int]:
        source = int(self.last_S.searchsorted(row, side="right"))
        return self.parts[source].documents(row - int(self.first_S[source]))

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        source_B = self.last_S.searchsorted(indices, side="right")
        if streams := [rows for rows in self.parts if isinstance(rows, ConcatRows)]:  # then all are
            return read_streams(streams, source_B, indices - self.first_S[source_B])
        found: Batch = {}
        for source in np.unique(source_B).tolist():
            here = np.flatnonzero(source_B == source)
            part: Batch = self.parts[source].read(indices[here] - self.first_S[source])
            if len(here) == len(indices):
                return part
            for name, field in part.items():
                if name not in found:
                    found[name] = field.new_empty((len(indices), *field.shape[1:]))
                found[name].numpy()[here] = field.numpy()
        return found

    def order(self, seed: int) -> MixOrder:
        """Raises UserError: nothing to draw, or not enough."""
        orders = [rows.order(seed_of(seed, name)) if len(rows) else _none for name, rows in self.sources.items()]
        order = MixOrder(self.course(), orders, self.first_S, seed)
        order.insist_on(self.sizes.before(self.max_steps))
        return order

    def course(self) -> Course:
        knots = self.spec.knots({name: rows.file.inputs for name, rows in self.sources.items()})
        for name, rows in self.sources.items():
            if not len(rows) and any(weights[name] for _, weights in knots):
                raise UserError(f"the source {name!r} has nothing to train on, and a weight: leave it out of data.sources")
        # A source without rows has no weight, so that whatever it counts is without effect.
        row_tokens = {name: rows.file.inputs / len(rows) if len(rows) else 1.0 for name, rows in self.sources.items()}
        most_S = [self.spec.max_epochs.get(name, np.inf) * len(rows) if len(rows) else 0 for name, rows in self.sources.items()]
        span = self.sizes.before(self.spec.span(self.max_steps))
        return Course(pieces(knots, list(self.sources), row_tokens, span), np.floor(most_S))


def _none(samples: Int64) -> Int64:
    raise AssertionError("a source without rows is never drawn")
