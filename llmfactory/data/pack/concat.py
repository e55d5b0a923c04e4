"""All documents in one stream, cut every T tokens; the last row is padded.

A document that runs over the end of a row goes on in the next one with positions from 0: what it cannot see does not count.
Labels are the stream shifted by one in either mode, because the token after an end token is predicted from that end token, which
already belongs to its document (`tokens.py`).

Conversations that are kept apart stand in it without the end before them; where a row is one text, with it, as between texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Int64, Rows, batch, laid_out, spans

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.spec import Concat
    from llmfactory.data.tokens import TokenFile


class ConcatRows(Rows):
    def __init__(self, spec: Concat, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.isolated = spec.isolate

    def __len__(self) -> int:
        return -(-self.inputs // self.seq_len)

    @property
    def inputs(self) -> int:
        return int(self.offsets[-1])

    @property
    def targets(self) -> int:
        return self.inputs if self.file.mask is None else self.file.targets

    def cut_documents(self) -> int:
        """Those that run over the end of a row."""
        T = self.seq_len
        return sum(int((start // T != (stop - 1) // T).sum()) for start, stop in spans(self.file))

    def documents(self, row: int) -> list[int]:
        start = row * self.seq_len
        first, last = self.offsets.searchsorted(start, side="right") - 1, self.offsets.searchsorted(start + self.seq_len)
        return list(range(int(first), min(int(last), self.file.documents)))

    def read(self, indices: Int64) -> Batch:
        return read_streams([self], np.zeros(len(indices), np.int64), indices)


class ConversationRows(Rows):
    """Conversations one after the other, each without the end before it."""

    isolated = True

    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        Rows.__init__(self, tokens, seq_len)
        self.begin: Int64 = self.offsets - tokens.skipped * np.arange(len(self.offsets))
        """[documents + 1]: where each begins among all inputs."""

    def __len__(self) -> int:
        return -(-self.file.inputs // self.seq_len)

    def cut_documents(self) -> int:
        start, stop, T = self.begin[:-1], self.begin[1:], self.seq_len
        return int(((start // T != (stop - 1) // T) & (stop > start)).sum())

    def documents(self, row: int) -> list[int]:
        start = row * self.seq_len
        found = np.arange(self.begin.searchsorted(start, side="right") - 1, self.begin.searchsorted(start + self.seq_len))
        some: list[int] = found[found < self.file.documents].tolist()
        return [number for number in some if self.begin[number] < self.begin[number + 1]]

    def read(self, indices: Int64) -> Batch:
        parts = [np.array(self.documents(row), np.int64) for row in self.check(indices)]
        number_P, row_P = np.concatenate(parts), indices.repeat([len(part) for part in parts])
        low_P = np.maximum(self.begin[number_P], row_P * self.seq_len)
        high_P = np.minimum(self.begin[number_P + 1], (row_P + 1) * self.seq_len)
        start_P = self.offsets[number_P] + self.file.skipped + low_P - self.begin[number_P]
        return laid_out(self.file, start_P, high_P - low_P, np.array([len(part) for part in parts]), self.seq_len)


def read_streams(streams: Sequence[ConcatRows], stream_B: Int64, indices: Int64) -> Batch:
    """Rows of several token files at once: row `indices[b]` of number `stream_B[b]` of them."""
    B, T, isolated, end_id = len(indices), streams[0].seq_len, streams[0].isolated, streams[0].file.end_id
    chosen = stream_B.tolist()
    rows_of = {number: np.flatnonzero(stream_B == number) for number in set(chosen)} if len(streams) > 1 else {0: slice(None)}
    for number, here in rows_of.items():
        streams[number].check(indices[here])
    # One slice a row into its file's small type, then one conversion of all: faster than slices or one fancy index into int64.
    stream_BT1 = np.empty((B, T + 1), streams[0].tokens.dtype)
    short: list[tuple[int, int]] = []  # a stream's last row, wherever the batch has it (twice where epochs meet)
    masked: list[tuple[int, NDArray[np.uint8]]] = []
    for row, (number, start) in enumerate(zip(chosen, (indices * T).tolist(), strict=True)):
        file = streams[number].file
        if start + T > streams[number].inputs:
            size = streams[number].inputs - start
            short.append((row, size))
            stream_BT1[row, : size + 1] = file.tokens[start:]
            stream_BT1[row, size + 1 :] = end_id
        else:
            stream_BT1[row] = file.tokens[start : start + T + 1]
        if file.mask is not None:
            masked.append((row, file.mask[start + 1 : start + T + 1]))
    tokens_BT = stream_BT1[:, :-1].astype(np.int64)
    labels_BT = stream_BT1[:, 1:].astype(np.int64)
    if isolated:
        positions_BT, segments_BT = _documents([one.offsets for one in streams], rows_of, stream_B, indices * T, T)
    else:
        positions_BT, segments_BT = np.empty((B, T), np.int64), np.ones((B, T), np.int64)
        positions_BT[:] = np.arange(T)
    for row, mask in masked:
        labels_BT[row, : len(mask)][mask == 0] = IGNORE
    for row, size in short:
        labels_BT[row, size:] = IGNORE
        positions_BT[row, size:] = 0
        segments_BT[row, size:] = 0
    return batch(tokens_BT, labels_BT, positions_BT, segments_BT)


def _documents(
    offsets: Sequence[Int64], rows_of: Mapping[int, Any], stream_B: Int64, start_B: Int64, T: int
) -> tuple[Int64, Int64]:
    """Positions and segments of rows that start at these places of their streams; `rows_of`: which rows are of a stream.

    The batch is a sequence of P pieces, each a run of one document within one row. All pieces of all rows are found at once,
    and either field is one `repeat` over pieces: no loop over documents.
    """
    B = len(start_B)
    row_B = np.arange(0, B * T, T)  # where the rows begin in the flat batch
    # Borders low to high of `offsets` lie within the row, after its first token.
    low_B, high_B = np.empty_like(start_B), np.empty_like(start_B)
    for number, here in rows_of.items():
        borders, start = offsets[number], start_B[here]
        low_B[here] = borders.searchsorted(start, side="right")
        high_B[here] = borders.searchsorted(start + T, side="left").clip(max=len(borders) - 1)
    pieces_B = high_B - low_B + 1
    end_B = pieces_B.cumsum()
    first_B = end_B - pieces_B  # number of the row's first piece among all
    number_P = np.arange(end_B[-1]) - first_B.repeat(pieces_B)  # number of the piece within its row, from 0
    border_P = low_B.repeat(pieces_B) + number_P - 1
    if len(rows_of) == 1:
        begin_P = offsets[next(iter(rows_of))][border_P]  # in the stream
    else:
        begin_P, stream_P = np.empty_like(border_P), stream_B.repeat(pieces_B)
        for number in rows_of:
            of_it = stream_P == number
            begin_P[of_it] = offsets[number][border_P[of_it]]
    begin_P += (row_B - start_B).repeat(pieces_B)  # in the flat batch
    begin_P[first_B] = row_B
    length_P = np.empty_like(begin_P)
    np.subtract(begin_P[1:], begin_P[:-1], out=length_P[:-1])
    length_P[-1] = B * T - begin_P[-1]
    positions = begin_P.repeat(length_P)
    np.subtract(np.arange(B * T), positions, out=positions)
    return positions.reshape(B, T), (number_P + 1).repeat(length_P).reshape(B, T)
