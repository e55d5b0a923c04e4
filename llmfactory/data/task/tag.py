"""Sentences with a tag for each word: the first token of a word has its tag, its other tokens have none (Devlin et al. 2018, 5.3).

Words that do not fit into a row are cut off; when tags are scored they count as not found.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.core.batch import IGNORE
from llmfactory.data.task.spec import Tag
from llmfactory.data.task.task import BadRecord, Record, Row, Task, begin_id, fields_of, separator_id
from llmfactory.data.tokenizer.tokenizer import Tokenizer


class Tagging(Task):
    kind = Tag.kind

    def __init__(self, spec: Tag) -> None:
        self.spec, self.labels = spec, []

    def check(self, record: Record) -> None:
        words, tags = self._list(record, self.spec.words), self._list(record, self.spec.tags)
        if len(words) != len(tags):
            raise BadRecord(f"{len(words)} words have {len(tags)} tags")
        if not words:
            raise BadRecord("there are no words")

    def _list(self, record: Record, name: str) -> list[str]:
        value = record.get(name)
        if not isinstance(value, list) or not all(isinstance(item, (str, int)) and not isinstance(item, bool) for item in value):
            raise BadRecord(f"the field {name!r} is no list of texts (fields: {', '.join(sorted(record)[:10])})")
        return [str(item) for item in value]

    def texts(self, record: Record) -> Iterator[str]:
        yield " ".join(self._list(record, self.spec.words))

    def classes(self, record: Record) -> Iterator[str]:
        yield from self._list(record, self.spec.tags)

    def rows(self, number: int, record: Record, tokenizer: Tokenizer, seq_len: int) -> Iterator[Row]:
        tokens, labels = [begin_id(tokenizer)], [IGNORE]
        firsts: list[int] = []
        words, tags = self._list(record, self.spec.words), self._list(record, self.spec.tags)
        for word, tag in zip(words, tags, strict=True):
            piece = tokenizer.encode(f" {word}" if firsts else word) or [tokenizer.end_id]  # a word that encodes to nothing
            if len(tokens) + len(piece) + 1 > seq_len:
                break
            firsts.append(len(tokens))
            tokens += piece
            labels += [self.number_of(tag), *[IGNORE] * (len(piece) - 1)]
        yield Row(number, fields_of([*tokens, separator_id(tokenizer)], [*labels, IGNORE]), {"firsts": firsts, "tags": tags})
