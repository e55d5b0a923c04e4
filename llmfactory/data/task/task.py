"""The interface of tasks, and the rows that examples become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Int64, Rows
from llmfactory.data.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

Record = Mapping[str, Any]
"""One line of a file of examples."""
BEGINS = ("[CLS]", "<s>")
SEPARATES = ("[SEP]", "</s>")
"""How tokenizers of encoders spell what stands before and behind a text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch, not yet padded: a field of the batch -> its numbers."""

    example: int
    """Number of the record that it is of."""
    fields: dict[str, list[int]]
    extra: dict[str, Any] = field(default_factory=dict)
    """What scoring needs to read predictions back."""


class BadRecord(ValueError):
    """A record without what the task asks for; the message says what."""


class Task(ABC):
    """What a record means."""

    kind: str
    labels: list[str]
    """Names of the classes, by number; empty: the task has none."""

    @abstractmethod
    def check(self, record: Record) -> None:
        """Raises BadRecord."""

    @abstractmethod
    def texts(self, record: Record) -> Iterator[str]:
        """Its texts, to train a tokenizer on."""

    def classes(self, record: Record) -> Iterator[str]:
        """Its classes, to number them."""
        yield from ()

    @abstractmethod
    def rows(self, number: int, record: Record, tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
        """The rows of a record, each at most `seq_len` long; a text too long for one is cut or read in windows."""

    def number_of(self, name: str) -> int:
        """Of a class. Raises BadRecord for one that training does not know."""
        try:
            return self.labels.index(name)
        except ValueError:
            raise BadRecord(f"the class {name!r} is not one of the model's: {', '.join(self.labels)}") from None


def text_of(record: Record, name: str) -> str:
    """A field that must be a text."""
    value = record.get(name)
    if not isinstance(value, str):
        found = "is missing" if name not in record else f"is {type(value).__name__}, not a text"
        raise BadRecord(f"the field {name!r} {found} (fields: {', '.join(sorted(record)[:10])})")
    return value


def begin_id(tokenizer: Tokenizer) -> int:
    """Stands before a text."""
    return next((found[name] for found in [tokenizer.specials()] for name in BEGINS if name in found), tokenizer.end_id)


def separator_id(tokenizer: Tokenizer) -> int:
    """Stands behind a text."""
    return next((found[name] for found in [tokenizer.specials()] for name in SEPARATES if name in found), tokenizer.end_id)


class ExampleRows(Rows):
    """Rows of examples, padded on the right to `seq_len`; labels of a whole text (its class, both ends of a span) are [B, n]."""

    isolated = True

    def __init__(self, rows: Sequence[Row], seq_len: int, pad_id: int) -> None:
        self.rows, self.seq_len, self.pad_id = rows, seq_len, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> int:
        return sum(label != IGNORE for row in self.rows for label in row.fields["labels"])

    def documents(self, row: int) -> list[int]:
        return [self.rows[row].example]

    def read(self, indices: Int64) -> Batch:
        import torch

        chosen = [self.rows[number].fields for number in self.check(indices)]
        return {name: torch.from_numpy(self._padded(name, chosen)) for name in chosen[0]}

    def _padded(self, name: str, rows: Sequence[dict[str, list[int]]]) -> Int64:
        """[B, T], or [B, n] of a field that does not follow the tokens."""
        pad = IGNORE if name == "labels" else self.pad_id if name in ("tokens", "source") else 0
        follows = name.startswith("source") or len(rows[0][name]) == len(rows[0]["tokens"])
        table = np.full((len(rows), self.seq_len if follows else len(rows[0][name])), pad, np.int64)
        for number, row in enumerate(rows):
            table[number, : len(row[name])] = row[name]
        return table


def fields_of(tokens: list[int], labels: list[int], types: list[int] | None = None) -> dict[str, list[int]]:
    """A row of one document."""
    found = {
        "tokens": tokens,
        "labels": labels,
        "positions": list(range(len(tokens))),
        "segments": [1] * len(tokens),
    }
    return found if types is None else {**found, "types": types}
