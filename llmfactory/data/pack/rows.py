"""Rows: a token file seen as N independent sequences of T tokens, read by index in any order.

Whatever the packing, a target of the file stands in exactly one row exactly once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.batch import IGNORE
from llmfactory.data.order import Order

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile

Int64 = NDArray[np.int64]
Drawn = Callable[[Int64], Int64]
"""Row number of each global sample number, as `data/order.py` has it."""
AT_ONCE = 1 << 20
"""Documents that are looked at together, so that memory stays the same whatever the size of the corpus."""


class Rows(ABC):
    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        self.file, self.tokens, self.offsets, self.seq_len = tokens, tokens.tokens, tokens.offsets, seq_len

    isolated: bool
    """True: a token must see its own document only, so the model needs the batch's `segments`. False: a causal mask does."""
    ragged: bool = False
    """True: rows are only as long as the longest of their batch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Int64) -> Batch:
        """The rows of these numbers, as `core/batch.py` has it. Its tensors are the caller's own: nothing writes to them later."""

    def draw(self, indices: Int64, samples: Int64) -> Batch:
        """The rows as training sees them when they are the samples of these numbers: where something is random, anew each time."""
        return self.read(indices)

    def order(self, seed: int) -> Drawn:
        """The order in which training draws them."""
        return Order(len(self), seed)

    @property
    def sources(self) -> Mapping[str, Rows]:
        """The rows of each source, by name, one source after the other; none: they are of one."""
        return {}

    def documents(self, row: int) -> list[int]:
        """Numbers of the documents (of records, the record) that a row has something of, among those of its source; none: unknown."""
        return []

    def width(self, indices: Int64) -> int:
        """Tokens of a row in a batch of these rows, whichever of them a process reads."""
        return self.seq_len

    @property
    def targets(self) -> int:
        """Labels that are not ignored, over all rows."""
        return self.file.targets

    @property
    def inputs(self) -> int:
        """Tokens that the model reads, padding not counted, over all rows."""
        return self.file.inputs

    def places(self) -> int:
        """Tokens and padding of all rows."""
        return len(self) * self.seq_len

    def cut_documents(self) -> int:
        """Documents that stand in several rows: those longer than one."""
        return sum(int(((stop - start) > self.seq_len).sum()) for start, stop in spans(self.file))

    def check(self, indices: Int64) -> list[int]:
        """The row numbers as plain integers; raises where there is no such row."""
        numbers: list[int] = indices.tolist()
        if not numbers or min(numbers) < 0 or max(numbers) >= len(self):
            raise IndexError(f"rows {numbers[:10]} of {len(self)}")
        return numbers


def shares(rows: Rows) -> dict[str, float]:
    """What packing costs: the share of padding among all places, and of cut documents among all documents."""
    parts = list(rows.sources.values()) or [rows]
    places, documents = sum(part.places() for part in parts), sum(part.file.documents for part in parts)
    real, cut = sum(part.inputs for part in parts), sum(part.cut_documents() for part in parts)
    return {"padding": 1 - real / max(places, 1), "cut_documents": cut / max(documents, 1)}


def spans(file: TokenFile, at_once: int = AT_ONCE) -> Iterator[tuple[Int64, Int64]]:
    """(first input, the one after the last) of the documents, some at a time."""
    for low in range(0, file.documents, at_once):
        some = file.offsets[low : low + at_once + 1]
        yield some[:-1] + file.skipped, some[1:]


def laid_out(file: TokenFile, start_P: Int64, size_P: Int64, pieces_B: Int64, T: int) -> Batch:
    """P pieces of the stream one after the other in B rows of T, `pieces_B` of them in each row; its rest is padding."""
    B = len(pieces_B)
    after_B = pieces_B.cumsum()  # number of the first piece after the row
    ends_P = np.concatenate([[0], size_P.cumsum()])
    filled_B = ends_P[after_B] - ends_P[after_B - pieces_B]
    row_P = np.arange(B).repeat(pieces_B)
    begin_P = ends_P[:-1] + row_P * T - ends_P[after_B - pieces_B][row_P]  # in the flat batch
    tokens, labels = np.full(B * T, file.end_id, np.int64), np.full(B * T, IGNORE, np.int64)
    for start, size, begin in zip(start_P.tolist(), size_P.tolist(), begin_P.tolist(), strict=True):
        tokens[begin : begin + size] = file.tokens[start : start + size]
        labels[begin : begin + size] = file.tokens[start + 1 : start + size + 1]
        if file.mask is not None:
            labels[begin : begin + size][file.mask[start + 1 : start + size + 1] == 0] = IGNORE
    # Padding is one more piece of each row, perhaps an empty one, with segment 0: either field is one `repeat` over pieces.
    begin_Q = np.insert(begin_P, after_B, np.arange(B) * T + filled_B)
    size_Q = np.insert(size_P, after_B, T - filled_B)
    number_Q = np.insert(np.arange(1, len(row_P) + 1) - (after_B - pieces_B)[row_P], after_B, 0)
    segments = number_Q.repeat(size_Q)
    positions = np.arange(B * T) - begin_Q.repeat(size_Q)
    positions[segments == 0] = 0
    return batch(*(field.reshape(B, T) for field in (tokens, labels, positions, segments)))


def batch(tokens_BT: Int64, labels_BT: Int64, positions_BT: Int64, segments_BT: Int64) -> Batch:
    import torch

    return {
        "tokens": torch.from_numpy(tokens_BT),
        "labels": torch.from_numpy(labels_BT),
        "positions": torch.from_numpy(positions_BT),
        "segments": torch.from_numpy(segments_BT),
    }
