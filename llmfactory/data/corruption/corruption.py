"""The interface of corruptions, and rows that went through one.

Training corrupts a row anew at every sample number, so each epoch sees other masks (RoBERTa's dynamic masking, Liu et al. 2019,
section 4.1); a resumed run, or one on other processes, sees the same. Held-out rows are always corrupted by their own number
under one fixed seed: what is measured on them can be compared between runs of any seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.order import Words
from llmfactory.data.pack.rows import Drawn, Int64, Rows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

HELD_OUT_SEED = 0


class Corruption(ABC):
    """Makes an objective's task of plain rows. Documents of a packed row never mix."""

    raw_length: int
    """Tokens of the plain rows that it wants, so that what it makes of them fills the model's rows."""
    static: bool = False
    """True: a row looks the same in every epoch."""

    @abstractmethod
    def __call__(self, batch: Batch, keys_B: Words) -> Batch:
        """`batch` is `raw_length` wide, as `data/pack` reads it. All randomness of row b comes from `keys_B[b]`."""


class CorruptedRows(Rows):
    """As many rows as `rows` has, each turned into the task; `seed` is the job's."""

    isolated = True

    def __init__(self, rows: Rows, corruption: Corruption, seed: int) -> None:
        self.file, self.seq_len = rows.file, rows.seq_len
        self.rows, self.corruption, self.seed = rows, corruption, seed

    def __len__(self) -> int:
        return len(self.rows)

    def order(self, seed: int) -> Drawn:
        return self.rows.order(seed)

    @property
    def sources(self) -> Mapping[str, Rows]:
        return self.rows.sources

    def documents(self, row: int) -> list[int]:
        return self.rows.documents(row)

    def cut_documents(self) -> int:
        return self.rows.cut_documents()

    def read(self, indices: Int64) -> Batch:
        """As they are measured: the same in every run."""
        return self.corruption(self.rows.read(indices), row_keys(HELD_OUT_SEED, np.asarray(indices)))

    def draw(self, indices: Int64, samples: Int64) -> Batch:
        """As they are trained on."""
        numbers = indices if self.corruption.static else samples
        return self.corruption(self.rows.read(indices), row_keys(self.seed, np.asarray(numbers)))
