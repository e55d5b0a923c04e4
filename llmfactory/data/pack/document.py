"""One document a row, padded on the right; a longer one goes on in further rows with positions from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.pack.rows import Int64, Rows, laid_out, spans

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile

BLOCK = 1024
"""Documents between two marks: a row is found among the marks, then within its block, so that memory stays small."""


class DocumentRows(Rows):
    # Padding stands on the right, where a causal mask hides it from every token that counts.
    isolated = False

    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        rows_K = [int((-(-(stop - start) // seq_len)).sum()) for start, stop in spans(self.offsets, BLOCK)]
        self._first_K = np.concatenate([[0], np.cumsum(rows_K, dtype=np.int64)])  # of each block; at the end, of all

    def __len__(self) -> int:
        return int(self._first_K[-1])

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        pieces = [self._piece(row) for row in indices.tolist()]
        start_B, size_B = np.array(pieces, np.int64).T
        return laid_out(self.file, start_B, size_B, np.ones(len(indices), np.int64), self.seq_len)

    def _piece(self, row: int) -> tuple[int, int]:
        """(place in the stream, tokens) of a row."""
        T = self.seq_len
        block = int(self._first_K.searchsorted(row, side="right")) - 1
        offsets = self.offsets[block * BLOCK : (block + 1) * BLOCK + 1]
        rows_D = -(-np.diff(offsets) // T)
        last_D = rows_D.cumsum() + self._first_K[block]  # rows up to and with this document
        document = int(last_D.searchsorted(row, side="right"))
        start = int(offsets[document]) + (row - int(last_D[document] - rows_D[document])) * T
        return start, min(T, int(offsets[document + 1]) - start)
