"""Tokens on disk: one flat little-endian file, and the places where its documents begin.

The stream of n documents is `end, document 1, end, document 2, ..., document n, end`. The token at i+1 is the target of the
token at i, everywhere: the end token before a document is what its first token is predicted from, the one after it its last
target, so that a document of k tokens has k+1 targets and none of them belongs to another document.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 24
"""Tokens that are counted together."""


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type on disk that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenFile:
    """Memory-mapped: nothing is read until it is looked at, and several processes share the pages."""

    def __init__(self, path: Path, offsets_path: Path, dtype: np.dtype[np.unsignedinteger], end_id: int) -> None:
        self.path, self.end_id = path, end_id
        # A plain ndarray over the map: slicing a numpy.memmap object costs about twice as much (measured).
        self.tokens = _mapped(path, dtype)
        self.offsets: NDArray[np.int64] = np.fromfile(offsets_path, dtype="<i8").astype(np.int64, copy=False)
        """[documents + 1]: document i has the inputs at offsets[i] up to offsets[i+1], its targets one further each."""

    @property
    def targets(self) -> int:
        """Number of targets: the tokens of all documents and one end each."""
        return int(self.offsets[-1])

    def frequencies(self, vocab_size: int) -> NDArray[np.int64]:
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


def _mapped(path: Path, dtype: np.dtype[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    mapped = np.memmap(path, dtype=dtype, mode="r")
    view: NDArray[np.unsignedinteger] = mapped.view(np.ndarray)
    return view
