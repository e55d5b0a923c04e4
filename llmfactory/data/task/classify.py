"""Texts with a class each: begin, text, separator, and the second text and a separator where there are two.

A row too long is cut at the end of its longer text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmfactory.data.task.spec import Classify
from llmfactory.data.task.task import BadRecord, Record, Row, Task, begin_id, fields_of, separator_id, text_of
from llmfactory.data.tokenizer.tokenizer import Tokenizer


class Classification(Task):
    kind = Classify.kind

    def __init__(self, spec: Classify) -> None:
        self.spec, self.labels = spec, []

    def check(self, record: Record) -> None:
        for _ in self.texts(record):
            pass
        next(self.classes(record))

    def texts(self, record: Record) -> Iterator[str]:
        yield text_of(record, self.spec.text)
        if self.spec.pair is not None:
            yield text_of(record, self.spec.pair)

    def classes(self, record: Record) -> Iterator[str]:
        value = record.get(self.spec.label)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadRecord(f"the field {self.spec.label!r} is {value!r}, neither a text nor a whole number")
        yield str(value)

    def rows(self, number: int, record: Record, tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
        tokens, types = marked(list(self.texts(record)), tokenizer, seq_len)
        label = self.number_of(next(self.classes(record)))
        yield Row(number, fields_of(tokens, [label], types if self.spec.pair is not None else None))


def marked(texts: Sequence[str], tokenizer: Tokenizer, seq_len: int) -> tuple[list[int], list[int]]:
    """Tokens of one or two texts as a model reads them, and which of the texts each is of."""
    pieces = [tokenizer.encode(text) for text in texts]
    cut_to(pieces, seq_len - 1 - len(pieces))
    tokens, types = [begin_id(tokenizer)], [0]
    for place, piece in enumerate(pieces):
        tokens += [*piece, separator_id(tokenizer)]
        types += [place] * (len(piece) + 1)
    return tokens, types


def cut_to(pieces: list[list[int]], room: int) -> None:
    """Shorten the longest piece, token by token, until all fit."""
    while sum(map(len, pieces)) > max(room, 0):
        max(pieces, key=len).pop()
