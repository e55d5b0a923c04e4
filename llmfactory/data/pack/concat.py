"""All documents in one stream, cut every T tokens; the last row is padded.

A document that runs over the end of a row goes on in the next one with positions from 0: what it cannot see does not count.
Labels are the stream shifted by one in either mode, because the token after an end token is predicted from that end token, which
already belongs to its document (`tokens.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Int64, Rows, batch

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.spec import Concat
    from llmfactory.data.tokens import TokenFile


class ConcatRows(Rows):
    def __init__(self, spec: Concat, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.isolated = spec.isolate

    def __len__(self) -> int:
        return -(-self.targets // self.seq_len)

    def read(self, indices: Int64) -> Batch:
        self.check(indices)
        B, T = len(indices), self.seq_len
        start_B = indices * T
        tokens_BT, labels_BT = np.empty((B, T), np.int64), np.empty((B, T), np.int64)
        for row, start in enumerate(start_B.tolist()):  # slices: several times faster than one fancy index
            stream = self.tokens[start : start + T + 1]
            size = len(stream) - 1
            tokens_BT[row, :size] = stream[:-1]
            labels_BT[row, :size] = stream[1:]
            if size < T:
                tokens_BT[row, size:] = self.file.end_id
                labels_BT[row, size:] = IGNORE
        if self.isolated:
            positions_BT, segments_BT = self._documents(start_B)
        else:
            positions_BT = np.empty((B, T), np.int64)
            positions_BT[:] = np.arange(T)
            segments_BT = np.ones((B, T), np.int64)
        # Only the stream's last row can be short.
        for row in np.flatnonzero(start_B + T > self.targets).tolist():
            segments_BT[row, self.targets - int(start_B[row]) :] = 0
            if self.isolated:
                positions_BT[row, self.targets - int(start_B[row]) :] = 0
        return batch(tokens_BT, labels_BT, positions_BT, segments_BT)

    def _documents(self, start_B: Int64) -> tuple[Int64, Int64]:
        """Positions and segments of rows that start at these places of the stream.

        The batch is a sequence of pieces, each a run of one document within one row. All pieces of all rows are found at once,
        and both fields are one `repeat` over pieces: no loop over documents.
        """
        B, T = len(start_B), self.seq_len
        # Documents that begin within the row after its first token: borders low to high of `offsets`.
        low_B = np.searchsorted(self.offsets, start_B, side="right")
        high_B = np.searchsorted(self.offsets, np.minimum(start_B + T, self.targets), side="left")
        pieces_B = high_B - low_B + 1
        first_B = np.cumsum(pieces_B) - pieces_B  # number of the row's first piece among all pieces
        total = int(pieces_B.sum())
        number_P = np.arange(total) - np.repeat(first_B, pieces_B)  # number of the piece within its row, from 0
        border_P = self.offsets[np.repeat(low_B, pieces_B) + number_P - 1]  # where its document begins in the stream
        shift_B = np.arange(B) * T - start_B
        begin_P = border_P + np.repeat(shift_B, pieces_B)  # where it begins in the flat batch
        begin_P[first_B] = np.arange(B) * T
        length_P = np.diff(begin_P, append=B * T)
        positions = np.arange(B * T) - np.repeat(begin_P, length_P)
        return positions.reshape(B, T), np.repeat(number_P + 1, length_P).reshape(B, T)
