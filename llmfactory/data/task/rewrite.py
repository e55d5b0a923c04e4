"""Pairs of texts, one read and one written, for models with an encoder.

The encoder reads the source and a separator; the decoder begins with the model's start token and is asked for the target and its
end. Both are cut to the length of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.data.task.spec import Rewrite
from llmfactory.data.task.task import BadRecord, Record, Row, Task, fields_of, separator_id, text_of
from llmfactory.data.tokenizer.tokenizer import Tokenizer


class Rewriting(Task):
    kind = Rewrite.kind

    def __init__(self, spec: Rewrite) -> None:
        self.spec, self.labels = spec, []

    def check(self, record: Record) -> None:
        for text in self.texts(record):
            if not text.strip():
                raise BadRecord("a text is empty")

    def texts(self, record: Record) -> Iterator[str]:
        yield self.spec.prefix + text_of(record, self.spec.source)
        yield text_of(record, self.spec.target)

    def rows(self, number: int, record: Record, tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
        source, target = (tokenizer.encode(text)[: seq_len - 1] for text in self.texts(record))
        source = [*source, separator_id(tokenizer)]
        start = start_id(tokenizer)
        fields = fields_of([start, *target], [*target, tokenizer.end_id])
        reading = {"source": source, "source_positions": list(range(len(source))), "source_segments": [1] * len(source)}
        yield Row(number, {**fields, **reading}, {"source": source, "right": text_of(record, self.spec.target)})


def start_id(tokenizer: Tokenizer) -> int:
    """The first token of what a decoder writes."""
    start = tokenizer.usage.decoder_start_id
    return tokenizer.end_id if start is None else start
