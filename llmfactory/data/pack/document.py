"""One document a row, padded on the right; what is longer than T goes on in further rows, with positions from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Int64, Rows, batch

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile


class DocumentRows(Rows):
    # Padding stands on the right, where a causal mask hides it from every token that counts.
    isolated = False

    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        rows_D = -(-np.diff(self.offsets) // seq_len)
        self._last_D = np.cumsum(rows_D)  # rows of all documents up to and with this one
        self._first_D = self._last_D - rows_D

    def __len__(self) -> int:
        return int(self._last_D[-1]) if len(self._last_D) else 0

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        T = self.seq_len
        document_B = np.searchsorted(self._last_D, indices, side="right")
        start_B = self.offsets[document_B] + (indices - self._first_D[document_B]) * T
        size_B = np.minimum(self.offsets[document_B + 1] - start_B, T)
        shape = (len(indices), T)
        tokens_BT, labels_BT = np.full(shape, self.file.end_id, np.int64), np.full(shape, IGNORE, np.int64)
        for row, (start, size) in enumerate(zip(start_B.tolist(), size_B.tolist(), strict=True)):
            stream = self.tokens[start : start + size + 1]
            tokens_BT[row, :size] = stream[:-1]
            labels_BT[row, :size] = stream[1:]
        column_T = np.arange(T)
        real_BT = column_T < size_B[:, None]
        return batch(tokens_BT, labels_BT, np.where(real_BT, column_T, 0), real_BT.astype(np.int64))
