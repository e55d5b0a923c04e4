"""Tokens on disk: one flat little-endian file, and the places where its documents begin.

The stream of n documents is `end, document 1, end, document 2, ..., document n, end`. The token at i+1 is the target of the
token at i, everywhere: the end token before a document is what its first token is predicted from, the one after it its last
target, so that a document of k tokens has k+1 targets and none of them belongs to another document.

A conversation begins with what its template writes, and with nothing else, in training as when the model is asked. So the rows of
records leave out the end before them (`records`): one of k tokens has k inputs, and its first token is nobody's target.

Beside `<name>.bin` and `<name>.offsets` may stand
- `<name>.mask`, a byte for each token: 1 where it is a target, 0 where it is only read (a user's turn, a prompt);
- `<name>.records`, int64: the first document of each record, and the number of documents, where a record has several (the
  chosen and the rejected answer);
- `<name>.notes` and `<name>.notes.offsets`: a text for each document that is no token of it (its label, its source).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 24
"""Tokens that are counted together."""
Int64 = NDArray[np.int64]


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type on disk that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenFile:
    """Memory-mapped: nothing is read until it is looked at, and several processes share the pages."""

    def __init__(
        self,
        path: Path,
        offsets_path: Path,
        dtype: np.dtype[np.unsignedinteger],
        end_id: int,
        mask_path: Path | None = None,
        records_path: Path | None = None,
        notes_path: Path | None = None,
        conversations: bool = False,
    ) -> None:
        self.path, self.end_id, self.notes_path = path, end_id, notes_path
        self.skipped = int(conversations)
        """Tokens at the beginning of each document's stretch that rows leave out: the end before it, where it is a conversation."""
        self.tokens: NDArray[np.unsignedinteger] = _mapped(path, dtype)
        self.offsets: Int64 = _mapped(offsets_path, "<i8")
        """[documents + 1]: document i has the inputs at offsets[i] + `skipped` up to offsets[i+1], its targets one further each."""
        self.mask: NDArray[np.uint8] | None = None if mask_path is None else _mapped(mask_path, np.uint8)
        """[tokens]: 1 where a token is a target; None: every one is. That of the first, the end before all, says nothing."""
        self.records: Int64 | None = None if records_path is None else _mapped(records_path, "<i8")
        """[records + 1]: record i has the documents records[i] up to records[i+1]; None: each document is a record."""

    @classmethod
    def beside(cls, path: Path, dtype: np.dtype[np.unsignedinteger], end_id: int, conversations: bool = False) -> TokenFile:
        """`<name>.bin` with what stands beside it."""
        extra = {f"{kind}_path": path.with_suffix(f".{kind}") for kind in ("mask", "records", "notes")}
        there = {name: file for name, file in extra.items() if file.is_file()}
        return cls(path, path.with_suffix(".offsets"), dtype, end_id, conversations=conversations, **there)

    @property
    def inputs(self) -> int:
        """Number of inputs, each of which has a label: the tokens of all documents, and of texts one end each."""
        return int(self.offsets[-1]) - self.skipped * self.documents

    @functools.cached_property
    def targets(self) -> int:
        """Number of targets: the inputs whose label the mask does not leave out."""
        if self.mask is None:
            return self.inputs
        return sum(int(np.count_nonzero(self.mask[at : at + AT_ONCE])) for at in range(1, len(self.mask), AT_ONCE))

    def frequencies(self, vocab_size: int) -> Int64:
        """How often each id stands in it, [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self.tokens), AT_ONCE):
            counts += np.bincount(self.tokens[start : start + AT_ONCE], minlength=vocab_size)
        return counts

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> list[int]:
        """Tokens of one document, without the ends."""
        found: list[int] = self.tokens[self.offsets[index] + 1 : self.offsets[index + 1]].tolist()
        return found

    def record(self, index: int) -> range:
        """Documents of one record."""
        if self.records is None:
            return range(index, index + 1)
        return range(int(self.records[index]), int(self.records[index + 1]))

    def note(self, index: int) -> str:
        """What was noted of a document; nothing if no notes were kept."""
        if self.notes_path is None:
            return ""
        offsets = _mapped(self.notes_path.with_name(f"{self.notes_path.name}.offsets"), "<i8")
        with self.notes_path.open("rb") as file:
            file.seek(int(offsets[index]))
            return file.read(int(offsets[index + 1] - offsets[index])).decode()


def _mapped(path: Path, dtype: Any) -> Any:
    # A plain ndarray over the map: slicing a numpy.memmap object costs about twice as much (measured).
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
