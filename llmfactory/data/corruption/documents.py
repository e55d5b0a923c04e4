"""The documents of a batch's rows as pieces laid end to end, and pieces laid into rows again.

The end token that a document begins with in a row (`data/tokens.py`) is no text: it is taken off here, and each corruption puts
ends where its task wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.corruption.chance import uniform
from llmfactory.data.corruption.ragged import owners, starts, within
from llmfactory.data.order import Words
from llmfactory.data.pack.rows import Int64

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.corruption.chance import Float64
    from llmfactory.data.corruption.ragged import Bool


@dataclass(frozen=True, slots=True)
class Documents:
    """P pieces of text, N tokens together, of B rows of T tokens."""

    tokens_N: Int64
    length_P: Int64
    row_P: Int64
    keys_B: Words
    width: int
    """T."""
    place_N: Int64
    """Of each token in the flat [B, T] batch, which its random numbers belong to."""

    def uniform(self, stream: int) -> Float64:
        """A number in [0, 1) for each token."""
        drawn: Float64 = uniform(self.keys_B, self.width, stream).ravel()[self.place_N]
        return drawn

    def uniform_pieces(self, stream: int) -> Float64:
        """A number in [0, 1) for each piece, that of the place where it begins; pieces without tokens get any."""
        drawn_BT = uniform(self.keys_B, self.width, stream)
        begin_P = starts(self.length_P).clip(max=max(len(self.place_N) - 1, 0))
        return drawn_BT.ravel()[self.place_N[begin_P]] if len(self.place_N) else np.zeros(len(begin_P))

    def shortened(self, length_P: Int64) -> Documents:
        """The first so many tokens of each piece; pieces of none are gone."""
        kept_N = within(self.length_P) < length_P.repeat(self.length_P)
        some_P = length_P > 0
        return Documents(
            self.tokens_N[kept_N], length_P[some_P], self.row_P[some_P], self.keys_B, self.width, self.place_N[kept_N]
        )


def documents(batch: Batch, keys_B: Words, end_id: int) -> Documents:
    """The text of a batch."""
    tokens_BT, segments_BT = batch["tokens"].numpy(), batch["segments"].numpy()
    first_BT = first_of_segment(segments_BT)
    text_BT = (segments_BT > 0) & ~(first_BT & (tokens_BT == end_id))
    number_N = (first_BT & (segments_BT > 0)).ravel().cumsum()[text_BT.ravel()] - 1
    place_N = np.flatnonzero(text_BT)
    piece_row = np.nonzero(first_BT & (segments_BT > 0))[0]
    length_P = np.bincount(number_N, minlength=len(piece_row)).astype(np.int64)
    some_P = length_P > 0
    return Documents(
        tokens_BT[text_BT], length_P[some_P], piece_row[some_P].astype(np.int64), keys_B, tokens_BT.shape[1], place_N
    )


def first_of_segment(segments_BT: Int64) -> Bool:
    """Where another document, or padding, begins."""
    first_BT = np.ones(segments_BT.shape, bool)
    first_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return first_BT


def fitting(length_P: Int64, row_P: Int64, kind_P: Int64, needs: Sequence[tuple[Int64, int]]) -> Int64:
    """How many tokens of each piece can be kept so that every row has room; the end of a row gives way.

    `needs`: for each kind of room, table[kind, n], the places that a piece of n tokens takes (ascending in n, 0 for none), and
    the places that a row has.
    """
    for table_KN, room in needs:
        size_P = table_KN[kind_P, length_P]
        before_P = size_P.cumsum() - size_P
        first_of_row_P = np.searchsorted(row_P, row_P)  # rows ascend
        left_P = room - (before_P - before_P[first_of_row_P])
        over = np.flatnonzero(size_P > left_P)
        if len(over):
            length_P = length_P.copy()
            fits = table_KN[kind_P[over]] <= left_P[over, None]
            length_P[over] = np.where(left_P[over] > 0, fits.cumprod(1).sum(1) - 1, 0)
    return length_P


class Layout:
    """Where pieces of these sizes stand in B rows of T: one after the other, in order, the rest of a row is padding."""

    def __init__(self, size_P: Int64, row_P: Int64, rows: int, width: int) -> None:
        self.shape = (rows, width)
        before_P = starts(size_P)
        first_of_row_P = np.searchsorted(row_P, row_P)
        self.start_P = row_P * width + before_P - before_P[first_of_row_P]
        """Of each piece in the flat [B, T]."""
        piece_N = owners(size_P)
        self.place_N = self.start_P[piece_N] + within(size_P)
        """Of each element."""
        number_P = np.arange(len(row_P)) - first_of_row_P + 1
        self.segments = self.filled(0, self.place_N, number_P[piece_N])
        self.positions = self.filled(0, self.place_N, within(size_P))

    def filled(self, value: int, places: Int64, values: Int64) -> Int64:
        """[B, T] of `value`, with others at some places."""
        flat = np.full(self.shape[0] * self.shape[1], value, np.int64)
        flat[places] = values
        return flat.reshape(self.shape)
