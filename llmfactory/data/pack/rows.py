"""Rows: a token file seen as N independent sequences of T tokens, read by index in any order.

Whatever the packing, a target of the file stands in exactly one row exactly once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile

Int64 = NDArray[np.int64]


class Rows(ABC):
    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        self.file, self.tokens, self.offsets, self.seq_len = tokens, tokens.tokens, tokens.offsets, seq_len

    isolated: bool
    """True: a token must see its own document only, so the model needs the batch's `segments`. False: a causal mask does."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Int64) -> Batch:
        """The rows of these numbers, as `core/batch.py` has it. Its tensors are the caller's own: nothing writes to them later."""

    def draw(self, indices: Int64, samples: Int64) -> Batch:
        """The rows as training sees them when they are the samples of these numbers: where something is random, anew each time."""
        return self.read(indices)

    @property
    def targets(self) -> int:
        """Labels that are not ignored, over all rows."""
        return self.file.targets

    def check(self, indices: Int64) -> list[int]:
        """The row numbers as plain integers; raises where there is no such row."""
        numbers: list[int] = indices.tolist()
        if not numbers or min(numbers) < 0 or max(numbers) >= len(self):
            raise IndexError(f"rows {numbers[:10]} of {len(self)}")
        return numbers


def batch(tokens_BT: Int64, labels_BT: Int64, positions_BT: Int64, segments_BT: Int64) -> Batch:
    import torch

    return {
        "tokens": torch.from_numpy(tokens_BT),
        "labels": torch.from_numpy(labels_BT),
        "positions": torch.from_numpy(positions_BT),
        "segments": torch.from_numpy(segments_BT),
    }
