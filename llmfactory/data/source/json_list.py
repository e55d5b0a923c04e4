"""A JSON file with a list of objects, or an object that has one such list: read item by item, however large it is.

Items are told apart by brackets and quotes alone and parsed one by one, so that one that is no JSON is set aside by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from llmfactory.data.source import encoding
from llmfactory.data.source.plain import MARK
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.record import from_json
from llmfactory.data.source.streams import BLOCK, Damaged, too_long

BEFORE = rb'[^"\[\]{},]*'
"""Neither quotes nor brackets nor commas."""
REST = rb'[^"\\]*(?:\\.[^"\\]*)*'
"""Of a string, up to its closing quote."""
PLAIN = re.compile(BEFORE + rb'(?:"' + REST + rb'"' + BEFORE + rb")*", re.DOTALL)
STRING = re.compile(REST, re.DOTALL)


def read(file: BinaryIO, reading: Reading) -> Texts:
    spec = reading.spec
    for number, (raw, size) in enumerate(items(file, spec.max_record_bytes), 1):
        name = f"{reading.where}, item {number}"
        found = too_long(spec.max_record_bytes) if size > len(raw) else from_json(raw, spec.field)
        yield from reading.text(name, found, size, raw)


class Item:
    """Bytes so far; of more than the limit only the beginning."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.parts: list[bytes] = []

    def add(self, part: bytes, size: int) -> None:
        if self.size < self.limit:
            self.parts.append(part[: self.limit - self.size])
        self.size += size

    def take(self) -> tuple[bytes, int]:
        found = b"".join(self.parts), self.size
        self.parts, self.size = [], 0
        return found


def is_lines(file: BinaryIO) -> bool:
    """Whether a file of that name holds JSON lines: its first line is an object, and there is more."""
    first, _, rest = encoding.sample_of(file).removeprefix(MARK).lstrip().partition(b"\n")
    return first.startswith(b"{") and bool(rest.strip()) and not isinstance(from_json(first, None), tuple)


def items(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, int]]:
    """(bytes, size) of each; fewer bytes than that where it is larger than the limit. Raises `Damaged`."""
    item, whole = Item(limit), Item(limit)
    depth, base, found = 0, 0, 0  # brackets that are open, those around an item (0: outside of a list), lists so far
    closed = perhaps = (
        False  # whether anything was opened before; whether a list was just opened in an object; it counts if its first item is an object
    )
    for text, token, size in tokens(file, limit):
        if not found:
            whole.add(text + token, size + len(token))
        if perhaps:
            perhaps = False
            if token == b"{" and not text.strip():
                base, found = depth, found + 1
                if found > 1:
                    raise Damaged("several lists of objects", "where one is expected: give a file to each")
        if base and depth == base and token in (b",", b"]"):
            item.add(text, size)
            raw, size = item.take()
            if raw.strip() or token == b",":
                yield raw, size
        elif base:
            item.add(text + token, size + len(token))
        elif not depth and found and text.strip():
            raise Damaged("text after the end", repr(text.strip()[:50]))
        if token and token in b"[{":
            if not depth and closed:
                raise Damaged("text after the end", "JSON lines? data.source.format=jsonl")
            depth, closed = depth + 1, True
            if token == b"[" and depth == 1 and not found:
                base, found = 1, 1
            perhaps = token == b"[" and depth == 2 and not base
        elif token and token in b"]}":
            depth -= 1
            base = base if depth >= base else 0
            if depth < 0:
                raise Damaged("invalid JSON", "a closing bracket too many")
    if depth:
        raise Damaged("truncated", "the file ends within a list or an object")
    if not found and whole.size:  # a record that is a file
        raw, size = whole.take()
        if raw.strip():
            yield raw, size


def tokens(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, bytes, int]]:
    """(text, the bracket or comma behind it, size of the text), strings being text. Of a text larger than the limit, its start."""
    data, at = file.read(BLOCK).removeprefix(MARK), 0
    while True:
        end = PLAIN.match(data, at).end()  # type: ignore[union-attr]
        if end < len(data) and data[end] != 0x22:  # else the text goes on, or a string does
            yield data[at:end], data[end : end + 1], end - at
            at = end + 1
            continue
        data, at = data[at:], 0
        if len(data) > limit:
            rest, size = _skip(file, data)
            yield data[: limit + 1], b"", size
            data = rest
        elif more := file.read(max(BLOCK, len(data))):
            data += more
        else:
            if end < len(data):
                raise Damaged("truncated", "the file ends within a string")
            yield data, b"", len(data)
            return


def _skip(file: BinaryIO, data: bytes) -> tuple[bytes, int]:
    """What comes behind a text that is too large, and the text's size."""
    end = PLAIN.match(data).end()  # type: ignore[union-attr]
    if end == len(data):
        return b"", len(data)
    rest, size = data[end + 1 :], end + 1
    while True:
        stop = STRING.match(rest).end()  # type: ignore[union-attr]
        if rest[stop : stop + 1] == b'"':
            return rest[stop + 1 :], size + stop + 1
        size, rest = size + stop, rest[stop:]
        more = file.read(BLOCK)
        if not more:
            raise Damaged("truncated", "the file ends within a string")
        rest += more
