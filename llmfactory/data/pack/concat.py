"""All documents in one stream, cut every T tokens; the last row is padded.

A document that runs over the end of a row goes on in the next one with positions from 0: what it cannot see does not count.
Labels are the stream shifted by one in either mode, because the token after an end token is predicted from that end token, which
already belongs to its document (`tokens.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Int64, Rows, batch, spans

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.spec import Concat
    from llmfactory.data.tokens import TokenFile


class ConcatRows(Rows):
    def __init__(self, spec: Concat, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.isolated = spec.isolate

    def __len__(self) -> int:
        return -(-self.file.inputs // self.seq_len)

    def cut_documents(self) -> int:
        """Those that run over the end of a row."""
        T = self.seq_len
        return sum(int((start // T != (stop - 1) // T).sum()) for start, stop in spans(self.offsets))

    def read(self, indices: Int64) -> Batch:
        B, T, inputs = len(indices), self.seq_len, self.file.inputs
        numbers = self.check(indices)
        # One slice a row into its file's small type, then one conversion of all: faster than slices or one fancy index into int64.
        stream_BT1 = np.empty((B, T + 1), self.tokens.dtype)
        short: list[tuple[int, int]] = []  # the stream's last row, wherever the batch has it (twice where epochs meet)
        for row, start in enumerate(number * T for number in numbers):
            if start + T > inputs:
                size = inputs - start
                short.append((row, size))
                stream_BT1[row, : size + 1] = self.tokens[start:]
                stream_BT1[row, size + 1 :] = self.file.end_id
            else:
                stream_BT1[row] = self.tokens[start : start + T + 1]
        tokens_BT = stream_BT1[:, :-1].astype(np.int64)
        labels_BT = stream_BT1[:, 1:].astype(np.int64)
        if self.file.mask is not None:
            for row, start in enumerate(number * T for number in numbers):
                mask = self.file.mask[start + 1 : start + T + 1]  # shorter in the stream's last row
                labels_BT[row, : len(mask)][mask == 0] = IGNORE
        if self.isolated:
            positions_BT, segments_BT = self._documents(indices * T)
        else:
            positions_BT, segments_BT = np.empty((B, T), np.int64), np.ones((B, T), np.int64)
            positions_BT[:] = np.arange(T)
        for row, size in short:
            labels_BT[row, size:] = IGNORE
            positions_BT[row, size:] = 0
            segments_BT[row, size:] = 0
        return batch(tokens_BT, labels_BT, positions_BT, segments_BT)

    def _documents(self, start_B: Int64) -> tuple[Int64, Int64]:
        """Positions and segments of rows that start at these places of the stream.

        The batch is a sequence of P pieces, each a run of one document within one row. All pieces of all rows are found at once,
        and either field is one `repeat` over pieces: no loop over documents.
        """
        B, T = len(start_B), self.seq_len
        row_B = np.arange(0, B * T, T)  # where the rows begin in the flat batch
        # Borders low to high of `offsets` lie within the row, after its first token.
        low_B = self.offsets.searchsorted(start_B, side="right")
        high_B = self.offsets.searchsorted(start_B + T, side="left").clip(max=len(self.offsets) - 1)
        pieces_B = high_B - low_B + 1
        end_B = pieces_B.cumsum()
        first_B = end_B - pieces_B  # number of the row's first piece among all
        number_P = np.arange(end_B[-1]) - first_B.repeat(pieces_B)  # number of the piece within its row, from 0
        begin_P = self.offsets[low_B.repeat(pieces_B) + number_P - 1]  # in the stream
        begin_P += (row_B - start_B).repeat(pieces_B)  # in the flat batch
        begin_P[first_B] = row_B
        length_P = np.empty_like(begin_P)
        np.subtract(begin_P[1:], begin_P[:-1], out=length_P[:-1])
        length_P[-1] = B * T - begin_P[-1]
        positions = begin_P.repeat(length_P)
        np.subtract(np.arange(B * T), positions, out=positions)
        return positions.reshape(B, T), (number_P + 1).repeat(length_P).reshape(B, T)
