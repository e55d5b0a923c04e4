"""What the forms of records share: rows of any format in, conversations written out, tokens with marks on what is learned.

A document is the JSON `{"records": [...]}` of one row, each of them as data/record/record.py has it.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept, Outcome
from llmfactory.data.form.form import BadDocument, Encoded, Form, Sequences
from llmfactory.data.form.spec import RecordSpec, TooLong, Unwritable
from llmfactory.data.form.template.equip import equip, template_of
from llmfactory.data.form.template.ids import Written, encode
from llmfactory.data.form.template.template import Piece, Template
from llmfactory.data.record.formats import dumped, parsed, read, renamed
from llmfactory.data.record.messages import with_system
from llmfactory.data.record.record import BadRow, Kind, Record
from llmfactory.data.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmfactory.data.form.record_rows import RecordRows
    from llmfactory.data.pack.spec import PackSpec
    from llmfactory.data.tokens import TokenFile

VERSION = 2
"""Of what `normalize` and `encode` do; part of the fingerprint."""
Messages = list[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Side:
    """A conversation that becomes a token sequence."""

    messages: Messages
    turns: frozenset[int] | None
    """Numbers of the assistant's messages that are learned; None: everything is."""
    tools: Sequence[Any] = ()
    note: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[str] = ()
    """Texts that the last answer consists of, whose ends are noted; empty: they do not matter."""


class RecordForm(Form):
    records = True
    last_only: bool = False
    """Whether it is enough to know what the assistant wrote last."""
    sequences: int | None = None
    """How many each record becomes; shorter ones get empty ones behind. None: as many as it has sides."""
    prompt: ClassVar[str] = "prompt"
    """The field with the messages that may be cut on the left."""

    def __init__(self, spec: RecordSpec) -> None:
        self.record_spec, self.kind = spec, Kind[spec.kind]
        self.source, self.needed = spec.template.read()
        self._template: tuple[Tokenizer, Template] | None = None

    def fingerprint(self) -> str:
        options = {key: str(value) for key, value in sorted(asdict(self.record_spec).items()) if key != "template"}
        return f"{type(self.record_spec).__name__} {VERSION} {options} {self.source!r} {self.needed}"

    def specials(self) -> tuple[str, ...]:
        return self.needed

    def equip(self, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
        return equip(tokenizer, self.source, self.needed, vocab_size)

    def normalize(self, page: Page) -> Outcome:
        changes: dict[str, int] = {}
        try:
            row = renamed(parsed(page.text), self.record_spec.fields)
            name, found = read(row, self.kind, self.record_spec.format)
            return Kept(dumped({"records": [self.prepared(self._spoken_to(one), changes) for one in found]}), changes, name)
        except BadRow as error:
            return Drop(error.reason, error.detail)

    def _spoken_to(self, record: Record) -> Record:
        messages = record[self.prompt]
        if self.record_spec.system is None or messages[0]["role"] == "system":
            return record
        return {**record, self.prompt: with_system(self.record_spec.system, messages)}

    def prepared(self, record: Record, changes: dict[str, int]) -> Record:
        """The record as it is kept; what was changed is counted. Raises BadRow where it is of no use."""
        return record

    @abstractmethod
    def sides(self, record: Record) -> list[Side]:
        """The sequences of a record."""

    def texts(self, text: str) -> Iterator[str]:
        for record in json.loads(text)["records"]:
            for side in self.sides(record):
                for message in side.messages:
                    content = message["content"]
                    yield from [content] if isinstance(content, str) else [part.get("text", "") for part in content]
                    yield from (json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ()))
                yield from (json.dumps(tool, ensure_ascii=False) for tool in side.tools)

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Sequences]:
        records = [json.loads(text)["records"] for text in texts]
        sides = [[self.sides(record) for record in some] for some in records]
        flat = [[side for one in some for side in one] for some in sides]
        pieces = [self.attempt(number, partial(self._pieces, tokenizer, some)) for number, some in enumerate(flat)]
        written = iter(encode(tokenizer, [one for some in pieces for one in some or ()]))
        found: list[Sequences] = []
        for number, (some, of_each, there) in enumerate(zip(records, sides, pieces, strict=True)):
            if there is None:
                found.append(None)
                continue
            whole = [[next(written) for _ in one] for one in of_each]
            found.append(self.attempt(number, partial(self._made, tokenizer, some, of_each, whole)))
        return found

    def _made(
        self, tokenizer: Tokenizer, records: Sequence[Record], sides: Sequence[list[Side]], written: Sequence[list[Written]]
    ) -> list[Encoded]:
        """The sequences of a document."""
        parts = zip(records, sides, written, strict=True)
        return [one for part in parts for one in self._filled(self._fitted(tokenizer, *part))]

    def attempt(self, number: int, make: Callable[[], T]) -> T | None:
        """What is made of the document of this number; None where its template cannot write it, and it is to be left out.
        Raises `BadDocument`."""
        try:
            return make()
        except UserError as error:
            if self.record_spec.unwritable is Unwritable.drop:
                return None
            raise BadDocument(number, f"{error}; or leave such conversations out: data.form.unwritable=drop") from error

    def _filled(self, sequences: list[Encoded]) -> list[Encoded]:
        missing = (self.sequences or 0) - len(sequences) if sequences else 0
        return [*sequences, *(Encoded((), np.zeros(1, bool)) for _ in range(missing))]

    def _written(self, tokenizer: Tokenizer, sides: Sequence[Side]) -> list[Written]:
        return encode(tokenizer, self._pieces(tokenizer, sides))

    def _pieces(self, tokenizer: Tokenizer, sides: Sequence[Side]) -> list[list[Piece]]:
        template = self.template(tokenizer)
        return [_stepped(template.pieces(side.messages, side.tools, self.last_only), side) for side in sides]

    def template(self, tokenizer: Tokenizer) -> Template:
        """How conversations are written out with this tokenizer."""
        if self._template is None or self._template[0] is not tokenizer:
            self._template = tokenizer, template_of(tokenizer, self.source)
        return self._template[1]

    def _fitted(self, tokenizer: Tokenizer, record: Record, sides: list[Side], written: list[Written]) -> list[Encoded]:
        """The sequences of a record, none longer than allowed; nothing where it is left out."""
        room = self.record_spec.max_tokens
        whole = [self._sequence(tokenizer, *one) for one in zip(sides, written, strict=True)]
        if room is None or all(len(one.ids) < room for one in whole):
            return whole
        if self.record_spec.too_long is TooLong.drop:
            return []
        size = sum(len(one.ids) for one in whole)
        if self.record_spec.too_long is TooLong.left:
            while (shorter := self._shorter(record)) is not None:
                record = shorter
                sides = self.sides(record)
                fewer = [self._sequence(tokenizer, *one) for one in zip(sides, self._written(tokenizer, sides), strict=True)]
                if not all(map(_learns, fewer)):
                    return []
                whole = fewer
                if all(len(one.ids) < room for one in whole):
                    break
        cut = [_cut(one, room) for one in whole]
        if not all(map(_learns, cut)):
            return []
        left_out = size - sum(len(one.ids) for one in cut)
        return [Encoded(one.ids, one.targets, left_out if number == 0 else 0, one.note) for number, one in enumerate(cut)]

    def _shorter(self, record: Record) -> Record | None:
        """Without the first question and what follows it up to the next one; None: there is no next one."""
        messages = record[self.prompt]
        asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if len(asked) < 2:
            return None
        first, second = asked[:2]
        lost = sum(
            part["type"] == "image"
            for one in messages[first:second]
            if not isinstance(one["content"], str)
            for part in one["content"]
        )
        kept = {**record, self.prompt: [*messages[:first], *messages[second:]]}
        return {**kept, "images": record["images"][lost:]} if "images" in record else kept

    def _sequence(self, tokenizer: Tokenizer, side: Side, written: Written) -> Encoded:
        ids, turn = written
        note = dict(side.note)
        if side.steps:
            first = answers(side.messages) - 1
            note["places"] = [int(np.flatnonzero(turn == first + step)[-1]) for step in range(len(side.steps))]
            turn = np.minimum(turn, first)
        marks = np.ones(len(ids), bool) if side.turns is None else np.isin(turn, list(side.turns))
        marks[:1] = False  # nothing stands before the first token that it could be predicted from
        if side.turns is not None:  # nothing is learned from what stands behind the last answer
            size = int(np.flatnonzero(marks)[-1]) + 1 if marks.any() else 0
            ids, marks = ids[:size], marks[:size]
        ended = len(ids) > 1 and ids[-1] == tokenizer.end_id  # the end behind it is in the stream already
        last = len(ids) - 1 if ended else len(ids)
        end = bool(marks[-1]) if ended else side.turns is None
        return Encoded(ids[:last], np.append(marks[:last], end), 0, json.dumps(note, ensure_ascii=False) if note else "")


def _stepped(pieces: list[Piece], side: Side) -> list[Piece]:
    """The last answer's text cut where its steps end, each of them as a turn of its own."""
    if not side.steps:
        return pieces
    last = answers(side.messages) - 1
    place = next(number for number, piece in enumerate(pieces) if piece.turn == last and piece.token is None)
    text, at, found = pieces[place].text, 0, []
    for number, step in enumerate(side.steps):
        begin = text.index(step.strip(), at)
        until = len(text) if number == len(side.steps) - 1 else begin + len(step.strip())
        found.append(Piece(text[at:until], None, last + number))
        at = until
    ends = (Piece(one.text, one.token, last + len(side.steps)) if one.turn == last else one for one in pieces[place + 1 :])
    return [*pieces[:place], *found, *ends]


def _learns(one: Encoded) -> bool:
    return one.targets is None or bool(one.targets.any())


def _cut(one: Encoded, room: int) -> Encoded:
    """Without what is behind the last token allowed, and without the end that it then does not have."""
    if len(one.ids) < room:
        return one
    assert one.targets is not None
    note = json.loads(one.note) if one.note else {}
    if "places" in note:
        note["places"] = [place for place in note["places"] if place < room - 1]
        note["scores"] = note["scores"][: len(note["places"])]
    left = json.dumps(note, ensure_ascii=False) if note else ""
    return Encoded(one.ids[: room - 1], np.append(one.targets[: room - 1], False), 0, left)


def answers(messages: Messages) -> int:
    """How many of the messages are the assistant's."""
    return sum(message["role"] == "assistant" for message in messages)


class SidedForm(RecordForm):
    """A prompt, and one answer or several that are learned; its rows are not packed."""

    def side(self, record: Record, answer: Messages, **note: Any) -> Side:
        prompt = record["prompt"]
        before = answers(prompt)
        turns = frozenset(range(before, before + answers(answer)))
        pictures = {"images": record["images"]} if "images" in record else {}
        return Side([*prompt, *answer], turns, record.get("tools", ()), {**note, **pictures})

    @abstractmethod
    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> RecordRows:
        """One record a row."""
