"""Rows of records that have more than a text: one record a row, its sequences as documents 1, 2, ... of the row (`segments`), each
with its own prompt; then padding. So whatever keeps the documents of a packed row apart keeps the answers of a record apart.

| form | documents of a row | fields beside `tokens`, `labels`, `positions`, `segments` [B, T] |
|---|---|---|
| preference | the chosen answer, the rejected one | `margin` [B], NaN where there is none |
| kto | the answer | `label` [B], 1: wanted |
| ranking | K at most, the best first | `count` [B] of them; `scores` [B, K], NaN where there is none |
| prompts | the prompt, without an answer; `PromptRows.prompt` tells what is known of it | |
| reward | the answer | `score` [B], NaN for processes; `rewards` [B, T], NaN at every token that ends no step |

A row whose labels are all ignored counts nothing: it fills a place in the share of a process that has no more records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.pack.grouped import GroupOrder, places_in_groups
from llmfactory.data.pack.rows import Drawn, Int64, Rows, laid_out
from llmfactory.data.pack.spec import Grouped

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.spec import PackSpec
    from llmfactory.data.tokens import TokenFile


class RecordRows(Rows):
    def __init__(self, pack: PackSpec, tokens: TokenFile, seq_len: int, each: int = 1) -> None:
        """`each`: sequences of a record."""
        Rows.__init__(self, tokens, seq_len)
        self.each, self.isolated = each, each > 1  # else padding stands on the right, where a causal mask hides it
        whole_R = np.asarray(self.offsets[::each], np.int64)
        size_R = np.diff(whole_R) - tokens.skipped * each
        if (longest := int(size_R.max(initial=0))) > seq_len:
            raise UserError(
                f"{tokens.path} holds a record of {longest} tokens{f', {each} answers with their prompts' if each > 1 else ''}, which "
                f"no row of data.seq_len={seq_len} can take whole. Try data.form.max_tokens={seq_len // each} "
                f"(data.form.too_long says what becomes of longer ones), or data.seq_len={longest}"
            )
        self.spec = pack if isinstance(pack, Grouped) else None
        self.ragged = self.spec is not None
        self.size_R = size_R
        self.record_R: Int64 = np.argsort(size_R, kind="stable") if self.ragged else np.arange(len(size_R))
        """[rows]: the record in each row; by length where rows of similar length are drawn together."""

    def __len__(self) -> int:
        return len(self.size_R)

    def documents(self, row: int) -> list[int]:
        return [int(self.record_R[row])]

    def width(self, indices: Int64) -> int:
        return (
            self.seq_len if self.spec is None else self.spec.width(int(self.size_R[self.record_R[indices]].max()), self.seq_len)
        )

    def order(self, seed: int) -> Drawn:
        return Rows.order(self, seed) if self.spec is None else GroupOrder(len(self), self.spec.group, seed)

    def places(self) -> int:
        return (
            len(self) * self.seq_len
            if self.spec is None
            else places_in_groups(self.spec, self.size_R[self.record_R], self.seq_len)
        )

    def sequences(self, indices: Int64) -> list[range]:
        """Numbers of the sequences of each row's record."""
        return [range(row * self.each, (row + 1) * self.each) for row in self.record_R[self.check(indices)].tolist()]

    def laid_out(self, indices: Int64) -> Batch:
        """The sequences of each row's record, one document after the other."""
        number_P = np.array([sequence for record in self.sequences(indices) for sequence in record], np.int64)
        start_P = self.offsets[number_P] + self.file.skipped
        pieces_B = np.full(len(indices), self.each, np.int64)
        return laid_out(self.file, start_P, self.offsets[number_P + 1] - start_P, pieces_B, self.width(indices))

    def noted(self, sequence: int) -> dict[str, Any]:
        note = self.file.note(sequence)
        return dict(json.loads(note)) if note else {}


def _tensor(values: Any, kind: type) -> Any:
    import torch

    return torch.from_numpy(np.array(values, kind))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


class PairRows(RecordRows):
    def __init__(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> None:
        RecordRows.__init__(self, pack, tokens, seq_len, each=2)

    def read(self, indices: Int64) -> Batch:
        margins = [_number(self.noted(pair[0]).get("margin")) for pair in self.sequences(indices)]
        return {**self.laid_out(indices), "margin": _tensor(margins, np.float32)}


class LabelRows(RecordRows):
    def read(self, indices: Int64) -> Batch:
        labels = [int(self.noted(one[0])["label"]) for one in self.sequences(indices)]
        return {**self.laid_out(indices), "label": _tensor(labels, np.int64)}


class RankedRows(RecordRows):
    def __init__(self, pack: PackSpec, tokens: TokenFile, seq_len: int, most: int) -> None:
        RecordRows.__init__(self, pack, tokens, seq_len, each=most)

    def read(self, indices: Int64) -> Batch:
        records = self.sequences(indices)
        scores = [[_number(self.noted(one).get("score")) for one in record] for record in records]
        counts = [sum(len(self.file.document(one)) > 0 for one in record) for record in records]
        return {**self.laid_out(indices), "count": _tensor(counts, np.int64), "scores": _tensor(scores, np.float32)}


class ScoreRows(RecordRows):
    def read(self, indices: Int64) -> Batch:
        notes = [self.noted(one[0]) for one in self.sequences(indices)]
        fields = self.laid_out(indices)
        rewards: NDArray[np.float32] = np.full(tuple(fields["tokens"].shape), np.nan, np.float32)
        for row, note in enumerate(notes):
            for place, score in zip(note.get("places", ()), note.get("scores", ()), strict=True):
                rewards[row, place + 1 - self.file.skipped] = score
        scores = [_number(note.get("score")) for note in notes]
        return {**fields, "score": _tensor(scores, np.float32), "rewards": _tensor(rewards, np.float32)}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to answer."""

    tokens: list[int]
    """As the model reads it, up to where its answer begins."""
    messages: list[dict[str, Any]]
    record: dict[str, Any]
    """What is known of it: `answer`, `tests`, ..."""


class PromptRows(RecordRows):
    def read(self, indices: Int64) -> Batch:
        return self.laid_out(indices)

    def prompt(self, row: int) -> Prompt:
        """What stands in a row, as it is."""
        (sequence,) = self.sequences(np.array([row], np.int64))
        note = self.noted(sequence[0])
        return Prompt(self.file.document(sequence[0]), note["prompt"], note["record"])
