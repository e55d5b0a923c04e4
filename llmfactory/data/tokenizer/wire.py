"""Messages of protocol buffers, as bytes: field numbers and values (https://protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Value = int | float | bytes
V = TypeVar("V", int, float, bytes)
VARINT, EIGHT_BYTES, SIZED, FOUR_BYTES = 0, 1, 2, 5
"""Wire types."""


class Damaged(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True, slots=True)
class Message:
    """Values by field number, in the order of the bytes."""

    fields: Mapping[int, list[Value]]

    def all(self, number: int, kind: type[V]) -> list[V]:
        """Of a field that is repeated."""
        found = self.fields.get(number, [])
        if wrong := [value for value in found if not isinstance(value, kind)]:
            raise Damaged(f"field {number} is {type(wrong[0]).__name__}, not {kind.__name__}")
        return [value for value in found if isinstance(value, kind)]

    def last(self, number: int, missing: V) -> V:
        """Of a field that stands once; where it stands more often, the last counts."""
        return (self.all(number, type(missing)) or [missing])[-1]


def parse(content: bytes) -> Message:
    """Raises Damaged."""
    fields: dict[int, list[Value]] = {}
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == VARINT:
            value, place = _varint(content, place)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if kind == EIGHT_BYTES else 4
            value = struct.unpack("<d" if size == 8 else "<f", _taken(content, place, size))[0]
            place += size
        elif kind == SIZED:
            size, place = _varint(content, place)
            value, place = _taken(content, place, size), place + size
        else:
            raise Damaged(f"byte {place} begins a field of the unknown wire type {kind}")
        fields.setdefault(number, []).append(value)
    return Message(fields)


def _taken(content: bytes, place: int, size: int) -> bytes:
    if place + size > len(content):
        raise Damaged(f"it ends within a field ({len(content)} bytes, {place + size} are said to follow)")
    return content[place : place + size]


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """The number, and the place behind it: seven bits a byte, the lowest first, the eighth says that more follow."""
    number = shift = 0
    while True:
        byte = _taken(content, place, 1)[0]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
        if shift > 63:
            raise Damaged(f"the number before byte {place} has no end")
