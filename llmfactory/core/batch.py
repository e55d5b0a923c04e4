"""A batch: a plain dict of tensors that all have the rows, B, as their first dimension.

| key | shape | meaning |
|---|---|---|
| `tokens` | [B, T] int64 | input ids |
| `labels` | [B, T] int64 | aligned to the logits: `labels[b, t]` is what position t must predict; -100 is ignored |
| `positions` | [B, T] int64 | position of the token in its document |
| `segments` | [B, T] int64 | number of the document within the row, from 1; 0 is padding |
| `weights` | [B, T] float | optional weight of each label |
| `prefix` | [B, T] int64 | 1: part of its document's prefix, which is seen from both sides |
| `types` | [B, T] int64 | which of several kinds of text a token belongs to (question and passage) |
| `order` | [B, T] int64 | place in the order of prediction, 0: given (two-stream models) |
| `source` | [B, M] int64 | ids that an encoder reads; `tokens` are the decoder's |
| `source_positions`, `source_segments` | [B, M] int64 | document d of them goes with the decoder's document d |
| `images` | [B, N, C, Y, X] float | N pictures a row, whose vectors take the places of placeholder tokens in order |
| `margin`, `score` [B], `scores` [B, K], `count` [B], `label` [B], `rewards` [B, T] | | judgements of a row's answers, see `data/form/record_rows.py` |
| `reference_logps` | [B, K] float | log-probabilities of a row's answers under the reference, where they were computed before |
| `branches` | [B, T] int64 | of a row that is one document with several ends: 0 what they have in common, else number of the end |
| `other_tokens`, `other_labels`, ... | [B, S] | a second text of each row, see `data/form/mismatched.py` |
| `task` | [B] int64 | number of the source that a row of a mixture is from |
| `survey` | [B, n] float | sums over the whole optimizer step, the same in every row, see `Objective.survey` |

Because every field is indexed by row first, any batch of any stage can be cut into micro-batches or dealt to pipeline
stages by `split` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Batch = dict[str, Tensor]

IGNORE = -100
"""Label of a position that has no target."""

SURVEY = "survey"
"""Name of the field with what is known of the whole optimizer step."""

NARROW = frozenset({"margin", "score", "scores", "count", "label", "reference_logps", "survey", "task"})
"""Fields that are about rows or their answers, not about tokens."""


def rows(batch: Batch) -> int:
    """Number of rows, B."""
    return next(iter(batch.values())).shape[0]


def split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Cut along the rows into micro-batches of at most `size` rows, in order; None: one piece."""
    if size is None or size >= rows(batch):
        yield batch
        return
    for start in range(0, rows(batch), size):
        yield {name: field[start : start + size] for name, field in batch.items()}
