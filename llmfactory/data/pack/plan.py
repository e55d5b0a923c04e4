"""Rows worked out once: which pieces of documents stand in which row.

A document longer than a row is cut into pieces of T first (`data/pack/document.py`); `arrange` then deals the pieces to rows, a
window of the corpus at a time, so that memory stays bounded and the plan is a function of the tokens and of T alone. A corpus of
one window is worked out whenever it is opened; that of a larger one is kept beside its tokens, where all processes map it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.lock import locked
from llmfactory.data.pack.rows import Int64

if TYPE_CHECKING:
    from llmfactory.data.tokens import TokenFile

WINDOW = 1 << 21
"""Pieces that are arranged together, about."""
Arrange = Callable[[Int64, int], tuple[Int64, Int64]]
"""(sizes of pieces [P], T) -> (their order [P], how many of them each row takes [R])."""


@dataclass(frozen=True, slots=True)
class Plan:
    start: Int64
    """[pieces]: place in the stream."""
    size: Int64
    """[pieces]: tokens."""
    first: Int64
    """[rows + 1]: number of the first piece of each row."""

    def pieces(self, rows_B: Int64) -> tuple[Int64, Int64, Int64]:
        """(start, size) of all pieces of these rows, and how many each row has."""
        first_B = self.first[rows_B]
        pieces_B = self.first[rows_B + 1] - first_B
        before_B = pieces_B.cumsum() - pieces_B
        piece_P = np.arange(int(pieces_B.sum())) + (first_B - before_B).repeat(pieces_B)
        return self.start[piece_P], self.size[piece_P], pieces_B

    def documents(self, row: int, offsets: Int64) -> list[int]:
        """Numbers of the documents that a row has pieces of; `offsets`: where documents begin in the stream."""
        start_P = self.start[self.first[row] : self.first[row + 1]]
        found: list[int] = (offsets.searchsorted(start_P, side="right") - 1).tolist()
        return found


def plan(tokens: TokenFile, name: str, seq_len: int, arrange: Arrange) -> Plan:
    """The plan of a packing called `name`. Raises UserError: it has to be written, and cannot be."""
    offsets, skipped = tokens.offsets, tokens.skipped
    if _window(offsets, 0, seq_len) >= tokens.documents:
        nothing = np.zeros(0, np.int64)
        return next(_parts(offsets, skipped, seq_len, arrange), Plan(nothing, nothing, np.zeros(1, np.int64)))
    files = {field: tokens.path.with_suffix(f".{name}-{seq_len}.{field}") for field in Plan.__slots__}
    try:
        if not all(file.is_file() for file in files.values()):
            with locked(tokens.path.with_suffix(f".{name}-{seq_len}.lock")):
                if not all(file.is_file() for file in files.values()):
                    _write(files, _parts(offsets, skipped, seq_len, arrange))
    except OSError as error:
        raise UserError(
            f"the rows of data/pack={name} cannot be written beside {tokens.path}: {error.strerror or error}. "
            "Prepare the data in a folder that can be written: data.cache=..."
        ) from error
    return Plan(**{field: np.memmap(file, "<i8", "r").view(np.ndarray) for field, file in files.items()})


def _window(offsets: Int64, low: int, seq_len: int) -> int:
    """The document after the window that begins at `low`."""
    by_tokens = int(offsets.searchsorted(offsets[low] + WINDOW * seq_len, side="right")) - 1
    return min(low + WINDOW, max(by_tokens, low + 1), len(offsets) - 1)


def _parts(offsets: Int64, skipped: int, seq_len: int, arrange: Arrange) -> Iterator[Plan]:
    """`skipped`: tokens at the beginning of each document that no row has."""
    low = 0
    while low < len(offsets) - 1:
        high = _window(offsets, low, seq_len)
        length_D = np.diff(offsets[low : high + 1]) - skipped
        pieces_D = -(-length_D // seq_len)
        before_D = pieces_D.cumsum() - pieces_D
        within_P = np.arange(int(pieces_D.sum())) - before_D.repeat(pieces_D)
        start_P = (offsets[low:high] + skipped).repeat(pieces_D) + within_P * seq_len
        size_P = np.minimum(offsets[low + 1 : high + 1].repeat(pieces_D) - start_P, seq_len)
        order_P, pieces_R = arrange(size_P, seq_len)
        yield Plan(start_P[order_P], size_P[order_P], np.concatenate([[0], pieces_R.cumsum()]))
        low = high


def _write(files: dict[str, Path], parts: Iterator[Plan]) -> None:
    """All files, each by a rename."""
    work = {field: file.with_name(f"{file.name}.tmp") for field, file in files.items()}
    opened = {field: file.open("wb") for field, file in work.items()}
    try:
        done = 0
        opened["first"].write(np.zeros(1, "<i8").tobytes())
        for part in parts:
            part.start.astype("<i8").tofile(opened["start"])
            part.size.astype("<i8").tofile(opened["size"])
            (part.first[1:] + done).astype("<i8").tofile(opened["first"])
            done += len(part.start)
        for file in opened.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in opened.values():
            file.close()
    for field, path in work.items():
        path.rename(files[field])
