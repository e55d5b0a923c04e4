"""A conversation as tokens: which of them its template writes as special ones, and which the assistant writes.

A message is text: where it spells a special token (`<|im_end|>`) it speaks about it and does not end its turn. So such places are
marked before the template sees them, and only the template's own special tokens become special ids.

What the assistant writes is found in one of two ways. A template may say it itself, by generation tags. Otherwise the answer of
a turn is what stands between the prompt for it, which is the text of the messages before it with `add_generation_prompt`, and
the end that it has whatever follows. That is so only where later messages change nothing in front of them, which is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.form.template.sandbox import CLOSES, OPENS, asks_for, render
from llmfactory.data.record.messages import PLACE
from llmfactory.data.tokenizer.bytes import END_TOKEN
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

FIRST_MARK = 0xF0002
"""Of the private-use characters, which stand for nothing; behind those of generation tags."""
READ = -1
"""The number of the turn of what the assistant does not write."""
SHOWN = 200
"""Characters of a conversation that a message shows."""

Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool), `content`, and `tool_calls` where there are any."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Of a conversation that is written out."""

    text: str
    token: int | None
    """The id that it stands for; None: it is text."""
    turn: int
    """Number of the assistant's message that it belongs to, from 0; -1: it is only read."""


class Template:
    """A Jinja template over the special tokens of a tokenizer."""

    def __init__(self, source: str, name: str, tokenizer: Tokenizer) -> None:
        """`name`: what messages call it."""
        self.source, self.name = source, name
        self.specials = special_tokens(tokenizer)
        self.variables = _variables(tokenizer, self.specials)
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        self.pattern = re.compile("|".join(names) or r"(?!)")
        cuts = [(name[:size], name[size:]) for name in self.specials for size in range(1, len(name))]
        self._starts = re.compile(rf"({'|'.join(re.escape(start) for start, _ in cuts) or '(?!)'})\Z")
        self._ends = re.compile("|".join(re.escape(end) for _, end in cuts) or r"(?!)")

    def check(self, messages: Sequence[Message], tools: Sequence[Any]) -> None:
        """Raises UserError where the template would leave out a part of the conversation without a word."""
        known = asks_for(self.source)
        asked = {
            "tools": bool(tools),
            "tool_calls": any(message.get("tool_calls") for message in messages),
            "tool": any(message["role"] == "tool" for message in messages),
        }
        lost = [name for name, there in asked.items() if there and not known & {name, "ipython" if name == "tool" else name}]
        if lost:
            raise UserError(
                f"{self.name} does not write {' and '.join(lost)}, which a conversation has: {_shown(messages)}. "
                "Take another (data/form/template=chatml)"
            )

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Piece]:
        """The conversation up to where the assistant's answer begins."""
        mark = self._mark(messages, tools)
        return self._pieces(self._render(messages, tools, mark, True), [], mark)

    def pieces(self, messages: Sequence[Message], tools: Sequence[Any] = (), last_only: bool = False) -> list[Piece]:
        """The conversation; with `last_only` it is enough that the last of the assistant's messages is found."""
        self.check(messages, tools)
        mark = self._mark(messages, tools)
        text = self._render(messages, tools, mark)
        turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if text.count(OPENS) == text.count(CLOSES) == len(turns) > 0:
            return self._tagged(text, mark)
        text = text.replace(OPENS, "").replace(CLOSES, "")
        spans = [
            (number, *self._span(messages, tools, mark, text, place))
            for number, place in enumerate(turns)
            if not last_only or place == turns[-1]
        ]
        if any(before[2] > after[1] for before, after in pairwise(spans)):
            raise self._unstable(messages)
        return self._pieces(text, spans, mark)

    def _tagged(self, text: str, mark: str) -> list[Piece]:
        spans: list[tuple[int, int, int]] = []
        bare: list[str] = []
        size, began = 0, 0
        for part in re.split(f"({OPENS}|{CLOSES})", text):
            if part == OPENS:
                began = size
            elif part == CLOSES:
                spans.append((len(spans), began, size))
            else:
                bare.append(part)
                size += len(part)
        return self._pieces("".join(bare), spans, mark)

    def _span(self, messages: Sequence[Message], tools: Sequence[Any], mark: str, whole: str, place: int) -> tuple[int, int]:
        """Where in the whole text the assistant's message of this place begins and ends."""

        def written(some: Sequence[Message], prompted: bool = False) -> str:
            return self._render(some, tools, mark, prompted).replace(OPENS, "").replace(CLOSES, "")

        head = written(messages[:place], True)
        until = written(messages[: place + 1])
        following = whole
        if place == len(messages) - 1:  # what ends a conversation is not what ends a turn
            try:
                following = written([*messages, {"role": "user", "content": "x"}])
            except UserError:  # it wants another role there
                following = until
        content = messages[place]["content"]
        said = self._quoted(content, mark).strip() if isinstance(content, str) and "</think>" not in content else ""
        end = _alike(until, following)
        if place == len(messages) - 1 and (end <= len(head) or said not in until[len(head) : end]):
            end = len(until)  # it is written so only as long as nothing follows, as now
        if not whole.startswith(head) or end <= len(head) or said not in whole[len(head) : end]:
            raise self._unstable(messages)
        for found in self.pattern.finditer(whole, len(head)):
            if found.start() < end < found.end():
                end = found.start()
        last = None
        for last in self.pattern.finditer(whole, len(head), end):  # noqa: B007
            pass
        end = last.end() if last else end
        return len(head), end

    def _unstable(self, messages: Sequence[Message]) -> UserError:
        return UserError(
            f"{self.name} writes a turn otherwise when others follow it, so that what the assistant writes cannot be told in: "
            f"{_shown(messages)}. Put generation tags into it, or train on the last answer of each: data.form.train_on=last"
        )

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], mark: str, prompted: bool = False) -> str:
        given = {"add_generation_prompt": prompted, **self._given(messages, tools, mark)}
        text = render(self.source, {**self.variables, **given}, self.name)
        if mark in text:
            bare = {**given, **self._given(messages, tools, "")}
            if render(self.source, {**self.variables, **bare}, self.name) != text.replace(mark, ""):
                raise UserError(
                    f"{self.name} looks into texts that spell special tokens and cannot be trusted with: {_shown(messages)}"
                )
        return text

    def _given(self, messages: Sequence[Message], tools: Sequence[Any], mark: str) -> dict[str, Any]:
        lists = "image" in asks_for(self.source)
        written = [self._marked({**message, "content": message["content"] if lists else None}, mark) for message in messages]
        if not lists:
            for one, message in zip(written, messages, strict=True):
                one["content"] = self._joined(message["content"], mark)
        return {"messages": written, "tools": self._marked(list(tools), mark) or None}

    def _joined(self, content: Any, mark: str) -> str:
        """Parts as one text, for templates that know none; a picture is its token."""
        if isinstance(content, str):
            return self._quoted(content, mark)
        if PLACE not in self.specials:
            raise UserError(f"{self.name} writes pictures as {PLACE}, which is no special token of the tokenizer")
        return "".join(PLACE if part["type"] == "image" else self._quoted(part["text"], mark) for part in content)

    def _marked(self, value: Any, mark: str) -> Any:
        """Plain data whose texts spell no special token, not even where two of them meet."""
        if isinstance(value, str):
            return self._quoted(value, mark)
        if isinstance(value, Mapping):
            quoted = (key if self.pattern.search(str(key)) is None else self._quoted(key, mark) for key in value)
            return dict(zip(quoted, (self._marked(one, mark) for one in value.values()), strict=True))
        if isinstance(value, (list, tuple)):
            return [self._marked(one, mark) for one in value]
        return value

    def _quoted(self, text: str, mark: str) -> str:
        if text in ROLES:
            return text
        text = self.pattern.sub(lambda found: mark.join(found[0]), text)
        before = mark if self._ends.match(text) else ""
        return before + text + (mark if self._starts.search(text) else "")

    def _mark(self, *values: Any) -> str:
        """A character that occurs nowhere."""
        used = {*self.source, *_characters(values)}
        if used & {OPENS, CLOSES}:
            raise UserError(f"a conversation holds the private-use characters that mark generations: {_shown(values[0])}")
        return next(mark for mark in map(chr, range(FIRST_MARK, 0xFFFFE)) if mark not in used)

    def _pieces(self, text: str, spans: Sequence[tuple[int, int, int]], mark: str) -> list[Piece]:
        """`spans`: (turn, begin, end), in order."""
        found: list[Piece] = []
        place = 0
        for turn, begin, end in [*spans, (READ, len(text), len(text))]:
            for low, high, number in ((place, begin, READ), (begin, end, turn)):
                part = text[low:high].replace(OPENS, "").replace(CLOSES, "")
                at = 0
                for special in self.pattern.finditer(part):
                    found.append(Piece(part[at : special.start()].replace(mark, ""), None, number))
                    found.append(Piece(special[0], self.specials[special[0]], number))
                    at = special.end()
                found.append(Piece(part[at:].replace(mark, ""), None, number))
            place = end
        return [piece for piece in found if piece.text]


ROLES = {"system", "user", "assistant", "tool", "function", "text", "image", ""}
"""Words of the format itself; no special token is spelled so."""


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    if other.startswith(one):
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _characters(value: Any) -> set[str]:
    if isinstance(value, str):
        return set(value)
    if isinstance(value, Mapping):
        return {character for item in value.items() for one in item for character in _characters(one)}
    if isinstance(value, (list, tuple)):
        return {character for one in value for character in _characters(one)}
    return set()


def _shown(messages: Any) -> str:
    text = " | ".join(" ".join(f"{message['role']}: {message['content']}".split()) for message in messages)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """What a template may write that is no text."""
    if isinstance(tokenizer, HfTokenizer):
        added = tokenizer.inner.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}
    found = tokenizer.specials()
    return found if tokenizer.end_id in found.values() else {**found, END_TOKEN: tokenizer.end_id}


def _variables(tokenizer: Tokenizer, specials: Mapping[str, int]) -> dict[str, str]:
    """What templates know beside the conversation."""
    names = {number: name for name, number in specials.items()}
    begin = tokenizer.usage.begin_ids
    named = {"eos_token": tokenizer.end_id, **({"bos_token": begin[0]} if begin else {})}
    if isinstance(tokenizer, HfTokenizer):
        names = {number: str(tokenizer.inner.id_to_token(number)) for number in named.values()}
    return {"bos_token": "", **{name: names[number] for name, number in named.items() if number in names}}
