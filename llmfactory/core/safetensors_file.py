"""The table of tensors at the start of a safetensors file, checked before a byte of a tensor is read.

A file is: the length of the header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), the tensors.
https://huggingface.co/docs/safetensors. A file comes from anywhere, so nothing in it is believed: lengths, offsets, sizes and
names are held against each other and against the file's size. Free of torch, so that a config error answers at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError

BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}
"""Bits of a number, by dtype."""
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    path: Path
    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""
    size: int
    """In bytes."""


def read_table(path: Path) -> dict[str, Stored]:
    """All tensors of a file by name. Raises UserError naming the file and what is wrong with it."""
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            header_size = int.from_bytes(start, "little")
            if len(start) < 8 or header_size > min(length - 8, LONGEST_HEADER):
                raise UserError(f"{path} is no whole safetensors file: {_header_fault(start, header_size, length)}")
            header = _parse(path, file.read(header_size))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    header.pop(METADATA, None)
    table = {name: _entry(path, name, entry, 8 + header_size) for name, entry in header.items()}
    _check_places(path, table, 8 + header_size, length)
    return table


def _header_fault(start: bytes, header_size: int, length: int) -> str:
    if start[:2] == b"\x80\x02" or start[:4] == b"PK\x03\x04":
        return "it is a pickle, which can run code when it is read, so it is not read"
    if len(start) < 8:
        return f"it has {length} bytes"
    return f"its header claims {header_size} bytes, the file has {length}"


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is no table of tensors")
    return header


def _entry(path: Path, name: str, entry: Any, data: int) -> Stored:
    """One line of the header; `data`: where the tensors begin."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {name} has no dtype, shape and two data_offsets") from error
    if dtype not in BITS:
        raise UserError(f"{path}: {name} has the dtype {dtype!r}, which is none of {', '.join(BITS)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
        raise UserError(f"{path} is damaged: {name} has the shape {shape!r} and the offsets {begin!r} to {end!r}")
    expected = math.prod(shape) * BITS[dtype] // 8
    if end - begin != expected:
        raise UserError(f"{path} is damaged: {name} {shape} of {dtype} takes {expected} bytes, its offsets say {end - begin}")
    return Stored(path, dtype, tuple(shape), data + begin, expected)


def _check_places(path: Path, table: dict[str, Stored], data: int, length: int) -> None:
    """The tensors fill the file one behind the other, as the format demands: nothing overlaps, nothing hides between."""
    places = sorted(table.items(), key=lambda item: (item[1].offset, item[1].size))
    ends = [data, *(stored.offset + stored.size for _, stored in places)]
    for (name, stored), end in zip(places, ends[:-1], strict=True):
        if stored.offset != end:
            raise UserError(f"{path} is damaged: {name} begins at byte {stored.offset}, the tensor before it ends at {end}")
    if ends[-1] != length:
        raise UserError(f"{path} is damaged or cut off: its tensors end at byte {ends[-1]}, the file at {length}")
