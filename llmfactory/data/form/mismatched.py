"""Rows of judged answers, each with an answer beside it that was given to another prompt (Ethayarajh et al. 2024, section 4.1).

| field | |
|---|---|
| `other_tokens`, `other_labels`, `other_positions`, `other_segments` | [B, S], the row's prompt with the answer of another record behind it |

Which one depends on the data alone: that of the record half of all records away, so that in an epoch every answer is one of the
others once. An answer that does not fit behind the prompt is cut off on the right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.pack.rows import Int64, Rows, batch
from llmfactory.data.pack.wrapped import WrappedRows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

OTHER = "other_"
"""Beginning of the names of the fields."""


class MismatchedRows(WrappedRows):
    def __init__(self, rows: Rows) -> None:
        WrappedRows.__init__(self, rows)
        if len(rows) == 1:
            raise UserError("there is only one record, so no answer to another prompt to compare with: give two at least")

    def added(self, own: Batch, indices: Int64) -> Batch:
        count = len(self.rows)
        others = self.rows.read((np.asarray(indices) + max(1, count // 2)) % count)
        mixed = mismatched(own, others, self.seq_len, fixed=not self.ragged, end_id=self.file.end_id)
        return own | {f"{OTHER}{name}": field for name, field in mixed.items()}


def mismatched(own: Batch, others: Batch, limit: int, *, fixed: bool, end_id: int) -> Batch:
    """The prompt of each row with the answer of the other one's behind it: rows of `limit` tokens, or not `fixed`, as long as the
    longest of them, which has at most so many."""
    inputs, targets = [], []
    for mine, theirs in zip(_documents(own), _documents(others), strict=True):
        first, start = (_first_label(labels) for _, labels in (mine, theirs))
        inputs.append(np.concatenate((mine[0][: first + 1], theirs[0][start + 1 :]))[:limit])
        targets.append(np.concatenate((np.full(first, IGNORE), theirs[1][start:]))[:limit])
    width = limit if fixed else max(map(len, inputs))
    shape = len(inputs), width
    tokens, labels = np.full(shape, end_id, np.int64), np.full(shape, IGNORE, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (read, learned) in enumerate(zip(inputs, targets, strict=True)):
        here = slice(len(read))
        tokens[row, here], labels[row, here], positions[row, here], segments[row, here] = read, learned, np.arange(len(read)), 1
    return batch(tokens, labels, positions, segments)


def _documents(rows: Batch) -> Iterator[tuple[Int64, Int64]]:
    """Tokens and labels of each row's first document."""
    for tokens, labels, segments in zip(rows["tokens"].numpy(), rows["labels"].numpy(), rows["segments"].numpy(), strict=True):
        yield tokens[segments == 1], labels[segments == 1]


def _first_label(labels: Int64) -> int:
    """Place of the last token of the prompt, which has the answer's first one as its label."""
    return int((labels != IGNORE).argmax())
