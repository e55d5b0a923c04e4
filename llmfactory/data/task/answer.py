"""Questions whose answer is a part of a text: begin, question, separator, text, separator (Devlin et al. 2018, section 4.2).

A text too long for one row is read in windows that overlap. The labels are the first and the last token of the answer; where a
window does not hold the whole answer, and where there is none, both are the first token of the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmfactory.data.task.spec import Answer
from llmfactory.data.task.task import BadRecord, Record, Row, Task, begin_id, fields_of, separator_id, text_of
from llmfactory.data.tokenizer.tokenizer import Tokenizer

LEAST = 8
"""Tokens of a text that a row must have room for beside its question."""


class Answering(Task):
    kind = Answer.kind

    def __init__(self, spec: Answer) -> None:
        self.spec, self.labels = spec, []

    def check(self, record: Record) -> None:
        context = text_of(record, self.spec.context)
        text_of(record, self.spec.question)
        texts, starts = self.right(record)
        for text, start in zip(texts, starts, strict=True):
            if context[start : start + len(text)] != text:
                raise BadRecord(f"the answer {text!r} does not stand at character {start} of the text")

    def right(self, record: Record) -> tuple[list[str], list[int]]:
        """The right answers and where they begin."""
        value: Any = record.get(self.spec.answers)
        texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise BadRecord(f"the field {self.spec.answers!r} is no {{'text': [...], 'answer_start': [...]}}")
        if not all(isinstance(text, str) for text in texts) or not all(type(start) is int for start in starts):
            raise BadRecord(f"the answers of {self.spec.answers!r} are no texts with whole numbers")
        return texts, starts

    def texts(self, record: Record) -> Iterator[str]:
        yield text_of(record, self.spec.question)
        yield text_of(record, self.spec.context)

    def rows(self, number: int, record: Record, tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
        question, context = self.texts(record)
        asked = tokenizer.encode(question)[: max(0, seq_len - 3 - LEAST)]
        tokens, spans = tokenizer.encode(context), tokenizer.spans(context)
        room = seq_len - 3 - len(asked)
        texts, starts = self.right(record)
        first, last = _span(spans, starts[0], starts[0] + len(texts[0])) if texts and texts[0] else (None, None)
        head = [begin_id(tokenizer), *asked, separator_id(tokenizer)]
        step = max(1, room - self.spec.stride)
        for start in range(0, max(1, len(tokens) - self.spec.stride), step):
            window = tokens[start : start + room]
            inside = first is not None and last is not None and start <= first and last < start + len(window)
            labels = [len(head) + first - start, len(head) + last - start] if inside else [0, 0]  # type: ignore[operator]
            types = [0] * len(head) + [1] * (len(window) + 1)
            extra = {"offset": len(head), "spans": spans[start : start + len(window)], "context": context, "right": texts}
            yield Row(number, fields_of([*head, *window, separator_id(tokenizer)], labels, types), extra)
            if start + room >= len(tokens):
                return


def _span(spans: list[tuple[int, int]], start: int, end: int) -> tuple[int | None, int | None]:
    """First and last token that touch the characters [start, end)."""
    touching = [number for number, (low, high) in enumerate(spans) if low < end and high > start]
    return (touching[0], touching[-1]) if touching else (None, None)
