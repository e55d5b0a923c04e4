"""Rows of records that have more than a text: one record a row, each of its sequences padded on the right.

| form | fields beside `tokens`, `labels`, `positions`, `segments` [B, T] |
|---|---|
| preference | those are the chosen answer's; `rejected_tokens`, ... [B, T] the other's; `margin` [B], NaN where there is none |
| kto | `label` [B], 1: wanted |
| ranking | all [B, K, T], the best first; `count` [B] answers, the others are padding; `scores` [B, K], NaN where there is none |
| reward | `score` [B], NaN for processes; `rewards` [B, T], NaN at every token that ends no step |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.pack.rows import Int64, Rows, laid_out, spans

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.tokens import TokenFile


class RecordRows(Rows):
    # Padding stands on the right, where a causal mask hides it from every token that counts.
    isolated = False

    def __init__(self, tokens: TokenFile, seq_len: int, each: int = 1) -> None:
        """`each`: sequences of a record."""
        Rows.__init__(self, tokens, seq_len)
        longest = max((int((stop - start).max(initial=0)) for start, stop in spans(self.offsets)), default=0)
        if longest > seq_len:
            raise UserError(
                f"{tokens.path} holds a sequence of {longest} tokens, which no row of data.seq_len={seq_len} can take whole. Try "
                f"data.form.max_tokens={seq_len} (data.form.too_long says what becomes of longer ones), or data.seq_len={longest}"
            )
        self.each = each

    def __len__(self) -> int:
        return self.file.documents // self.each

    def sequences(self, indices: Int64) -> list[range]:
        """Numbers of the sequences of each row's record."""
        return [range(row * self.each, (row + 1) * self.each) for row in self.check(indices)]

    def laid_out(self, sequences: Sequence[int]) -> Batch:
        """A row for each; -1: a row of padding."""
        number_B = np.array(sequences, np.int64)
        start_B = np.where(number_B < 0, 0, self.offsets[number_B])
        size_B = np.where(number_B < 0, 0, self.offsets[number_B + 1] - start_B)
        return laid_out(self.file, start_B, size_B, np.ones(len(number_B), np.int64), self.seq_len)

    def noted(self, sequence: int) -> dict[str, Any]:
        note = self.file.note(sequence)
        return dict(json.loads(note)) if note else {}


def _tensor(values: Any, kind: type) -> Any:
    import torch

    return torch.from_numpy(np.array(values, kind))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


class PairRows(RecordRows):
    def __init__(self, tokens: TokenFile, seq_len: int) -> None:
        RecordRows.__init__(self, tokens, seq_len, each=2)

    def read(self, indices: Int64) -> Batch:
        pairs = self.sequences(indices)
        chosen, rejected = (self.laid_out([pair[side] for pair in pairs]) for side in (0, 1))
        margins = [_number(self.noted(pair[0]).get("margin")) for pair in pairs]
        others = {f"rejected_{name}": field for name, field in rejected.items()}
        return {**chosen, **others, "margin": _tensor(margins, np.float32)}


class LabelRows(RecordRows):
    def read(self, indices: Int64) -> Batch:
        sequences = [one[0] for one in self.sequences(indices)]
        labels = [int(self.noted(one)["label"]) for one in sequences]
        return {**self.laid_out(sequences), "label": _tensor(labels, np.int64)}


class RankedRows(RecordRows):
    def __init__(self, tokens: TokenFile, seq_len: int, most: int) -> None:
        RecordRows.__init__(self, tokens, seq_len, each=most)

    def read(self, indices: Int64) -> Batch:
        records = [[one if len(self.file.document(one)) else -1 for one in record] for record in self.sequences(indices)]
        every = [sequence for record in records for sequence in record]
        shape = (len(records), self.each)
        scores = [float("nan") if one < 0 else _number(self.noted(one).get("score")) for one in every]
        fields = {name: field.reshape(*shape, self.seq_len) for name, field in self.laid_out(every).items()}
        return {
            **fields,
            "count": _tensor([sum(one >= 0 for one in record) for record in records], np.int64),
            "scores": _tensor(scores, np.float32).reshape(shape),
        }


class ScoreRows(RecordRows):
    def read(self, indices: Int64) -> Batch:
        sequences = [one[0] for one in self.sequences(indices)]
        notes = [self.noted(one) for one in sequences]
        rewards: NDArray[np.float32] = np.full((len(notes), self.seq_len), np.nan, np.float32)
        for row, note in enumerate(notes):
            for place, score in zip(note.get("places", ()), note.get("scores", ()), strict=True):
                rewards[row, place + 1] = score  # the end before the sequence is its first input
        scores = [_number(note.get("score")) for note in notes]
        return {**self.laid_out(sequences), "score": _tensor(scores, np.float32), "rewards": _tensor(rewards, np.float32)}
