"""Rows in which the answers of a record share their prompt: it stands once, and each answer is a branch behind it.

    two documents:  x1 x2 x3 c1 c2 | x1 x2 x3 r1 r2 r3
    one with ends:  x1 x2 | x3 c1 c2 | x3 r1 r2 r3

The last token of the prompt is repeated, so that each branch has a place for the label that is its first token. A branch sees what is
shared and itself (`core.mask.BranchMask`), its positions go on where the shared part ends: every token finds what it would find in a
document of its own. Shared is what the answers have in common before the first label of any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.batch import IGNORE
from llmfactory.data.form.record_rows import RecordRows
from llmfactory.data.pack.grouped import places_in_groups
from llmfactory.data.pack.rows import Int64, Rows, batch
from llmfactory.data.pack.wrapped import WrappedRows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class SharedPromptRows(WrappedRows):
    def added(self, own: Batch, indices: Int64) -> Batch:
        width = self.width(indices) if self.ragged else self.seq_len
        return own | branched(own, width, self.file.end_id)

    def width(self, indices: Int64) -> int:
        if not self.ragged:
            return self.rows.width(indices)
        rows = self._records()
        assert rows.spec is not None
        return rows.spec.width(int(self.size_R[rows.record_R[indices]].max()), self.seq_len)

    @property
    def inputs(self) -> int:
        """A shared prompt counts once. Rows of several sources are not looked at one by one: `shares` asks each source."""
        return int(self.size_R.sum())

    def places(self) -> int:
        rows = self._records()
        return rows.places() if rows.spec is None else places_in_groups(rows.spec, self.size_R[rows.record_R], self.seq_len)

    @property
    def sources(self) -> Mapping[str, Rows]:
        return {name: SharedPromptRows(rows) for name, rows in self.rows.sources.items()}

    def _records(self) -> RecordRows:
        assert isinstance(self.rows, RecordRows)
        return self.rows

    @functools.cached_property
    def size_R(self) -> Int64:
        """[records]: tokens of each where its prompt stands once."""
        return self._sizes(self._records())

    @staticmethod
    def _sizes(rows: RecordRows) -> Int64:
        sizes: Int64 = rows.size_R.copy()
        for record in range(len(sizes)):
            first, last = (int(rows.offsets[record * rows.each + end]) for end in (0, rows.each))
            bounds = rows.offsets[record * rows.each : (record + 1) * rows.each + 1] - first
            tokens = np.asarray(rows.file.tokens[first:last])
            learned = None if rows.file.mask is None else np.asarray(rows.file.mask[first + 1 : last + 1]) > 0
            documents = [
                (tokens[start:stop], np.ones(stop - start, bool) if learned is None else learned[start:stop])
                for start, stop in zip((bounds[:-1] + rows.file.skipped).tolist(), bounds[1:].tolist(), strict=True)
                if stop > start
            ]
            sizes[record] -= (len(documents) - 1) * in_common(documents) if documents else 0
        return sizes


def in_common(documents: list[tuple[Int64, NDArray[np.bool_]]]) -> int:
    """Tokens at the beginning that all documents have in common, before any of their labels."""
    (first, _), *others = documents
    common = min(int(learned.argmax()) if learned.any() else len(learned) for _, learned in documents)
    for tokens, _ in others:
        differ = first[:common] != tokens[:common]
        common = int(differ.argmax()) if differ.any() else common
    return common


def branched(rows: Batch, width: int, end_id: int) -> Batch:
    """Rows of documents as rows of branches, `width` tokens wide."""
    shape = len(rows["tokens"]), width
    tokens, labels = np.full(shape, end_id, np.int64), np.full(shape, IGNORE, np.int64)
    positions, segments, branches = (np.zeros(shape, np.int64) for _ in range(3))
    plain = [rows[name].numpy() for name in ("tokens", "labels", "segments")]
    for row, (read, learned, numbers) in enumerate(zip(*plain, strict=True)):
        present = np.unique(numbers[numbers > 0]).tolist()
        if not present:
            continue
        documents = [(read[numbers == number], learned[numbers == number]) for number in present]
        common = in_common([(ids, label != IGNORE) for ids, label in documents])
        tokens[row, :common], positions[row, :common], segments[row, :common] = documents[0][0][:common], np.arange(common), 1
        start = common
        for number, (ids, label) in zip(present, documents, strict=True):
            here = slice(start, start + len(ids) - common)
            tokens[row, here], labels[row, here] = ids[common:], label[common:]
            positions[row, here], segments[row, here], branches[row, here] = np.arange(common, len(ids)), 1, number
            start = here.stop
    import torch

    return batch(tokens, labels, positions, segments) | {"branches": torch.from_numpy(branches)}
