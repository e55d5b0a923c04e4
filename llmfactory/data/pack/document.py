"""One document a row, padded on the right; a longer one goes on in further rows with positions from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.pack.rows import Int64, Rows, laid_out, spans

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile

BLOCK = 64
"""Documents between two marks: a row is found among the marks, then within its block, so that memory stays small."""


class DocumentRows(Rows):
    # Padding stands on the right, where a causal mask hides it from every token that counts.
    isolated = False

    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        rows_K = [np.zeros(1, np.int64)]
        for start, stop in spans(tokens):  # a whole number of blocks each
            rows_K.append(np.add.reduceat(-(-(stop - start) // seq_len), np.arange(0, len(start), BLOCK)))
        self._first_K = np.concatenate(rows_K).cumsum()  # number of the first row of each block; at the end, of all rows

    def __len__(self) -> int:
        return int(self._first_K[-1])

    def documents(self, row: int) -> list[int]:
        return [int(self._found(np.array([row]))[0][0])]

    def _found(self, indices: Int64) -> tuple[Int64, Int64]:
        """[B] each: the document of a row, and how many rows it has from this one on."""
        block_B = self._first_K.searchsorted(indices, side="right") - 1
        document_BD = (block_B * BLOCK)[:, None] + np.arange(BLOCK + 1)
        offset_BD = self.offsets[document_BD.clip(max=self.file.documents)]
        rows_BD = -(-(np.diff(offset_BD) - self.file.skipped).clip(min=0) // self.seq_len)  # none behind the last document
        last_BD = rows_BD.cumsum(1) + self._first_K[block_B][:, None]  # rows up to and with a document
        document_B = (last_BD <= indices[:, None]).sum(1)
        return block_B * BLOCK + document_B, last_BD[np.arange(len(indices)), document_B] - indices

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        B, T = len(indices), self.seq_len
        document_B, left_B = self._found(indices)
        begin_B = self.offsets[document_B] + self.file.skipped
        size_B = self.offsets[document_B + 1] - begin_B
        done_B = (-(-size_B // T) - left_B) * T
        start_B = begin_B + done_B
        return laid_out(self.file, start_B, np.minimum(size_B - done_B, T), np.ones(B, np.int64), T)
