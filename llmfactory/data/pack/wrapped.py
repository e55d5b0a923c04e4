"""Rows with something more to them than the rows they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmfactory.data.pack.rows import Drawn, Int64, Rows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class WrappedRows(Rows):
    """As many rows as `rows` has, in the same order; what is added depends on the number of a row, so on the data alone."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.file, self.seq_len, self.isolated, self.ragged = rows.file, rows.seq_len, rows.isolated, rows.ragged

    def __len__(self) -> int:
        return len(self.rows)

    def added(self, own: Batch, indices: Int64) -> Batch:
        """The rows' own fields, and what is added to them."""
        return own

    def read(self, indices: Int64) -> Batch:
        return self.added(self.rows.read(indices), indices)

    def draw(self, indices: Int64, samples: Int64) -> Batch:
        return self.added(self.rows.draw(indices, samples), indices)

    def order(self, seed: int) -> Drawn:
        return self.rows.order(seed)

    @property
    def sources(self) -> Mapping[str, Rows]:
        return self.rows.sources

    def documents(self, row: int) -> list[int]:
        return self.rows.documents(row)

    def width(self, indices: Int64) -> int:
        return self.rows.width(indices)

    @property
    def targets(self) -> int:
        return self.rows.targets

    @property
    def inputs(self) -> int:
        return self.rows.inputs

    def places(self) -> int:
        return self.rows.places()

    def cut_documents(self) -> int:
        return self.rows.cut_documents()
