"""Metadata and the table of tensors of a GGUF file (llama.cpp's format), checked before a byte of a tensor is read.

A file is: magic, version, counts; the metadata as typed keys and values; name, shape, type and offset of each tensor; the
tensors, aligned. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file comes from anywhere, so every length and
count is held against what is left of the file before it is used. Free of torch, so that a config error answers at once; how
many bytes a block of quantized numbers takes is known to the package `gguf` (extra `gguf`).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.core.safetensors_file import Stored

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Struct codes of the value types that are numbers."""
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file says about itself."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    """Shapes in the order of torch, the slowest dimension first (the file has it the other way round)."""


def package(need: str) -> Any:
    """The module `gguf`. `need` says in a message what it is for."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", need) from error
    return gguf


def read_gguf(path: Path) -> GgufFile:
    """Raises UserError naming the file and what is wrong with it."""
    with _cursor(path) as cursor:
        if (magic := cursor.take(4)) != MAGIC:
            raise UserError(f"{path} is no GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = cursor.number("I")
        if version not in VERSIONS:
            shown = "of big-endian numbers" if version & 0xFFFF == 0 else f"version {version}"
            raise UserError(f"{path} is GGUF {shown}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read")
        n_tensors, n_values = cursor.count(24), cursor.count(13)
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.text()
            if key in metadata:
                raise cursor.damaged(f"the key {key} stands in it twice")
            metadata[key] = cursor.value(cursor.number("I"))
        lines = [_line(cursor) for _ in range(n_tensors)]
        alignment = metadata.get(ALIGNMENT, 32)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise cursor.damaged(f"{ALIGNMENT} is {alignment!r}, which is no multiple of 8")
        data = -(-cursor.position // alignment) * alignment
        return GgufFile(path, metadata, _tensors(cursor, lines, data))


def _line(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > MOST_DIMENSIONS:
        raise cursor.damaged(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _tensors(cursor: Cursor, lines: list[tuple[str, tuple[int, ...], int, int]], data: int) -> dict[str, Stored]:
    package_ = package(f"reading {cursor.path.name}")
    sizes = {int(kind): (kind.name, *size) for kind, size in package_.GGML_QUANT_SIZES.items()}
    found: dict[str, Stored] = {}
    for name, shape, kind, offset in lines:
        if name in found:
            raise cursor.damaged(f"the tensor {name} stands in it twice")
        if kind not in sizes:
            raise cursor.damaged(f"{name} has the type {kind}, which gguf {_version()} does not know")
        dtype, block, block_bytes = sizes[kind]
        if shape and shape[-1] % block:
            raise cursor.damaged(f"{name} {list(shape)} has rows of {shape[-1]} numbers, which {dtype} cannot store")
        size = math.prod(shape) // block * block_bytes
        if data + offset + size > cursor.length:
            raise cursor.damaged(
                f"{name} {list(shape)} of {dtype} would end at byte {data + offset + size}, the file ends at {cursor.length}"
            )
        found[name] = Stored(cursor.path, dtype, shape, data + offset, size)
    places = sorted(found.items(), key=lambda item: item[1].offset)
    for (name, here), (other, following) in pairwise(places):
        if here.offset + here.size > following.offset:
            raise cursor.damaged(f"{name} and {other} lie over each other")
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


@contextmanager
def _cursor(path: Path) -> Iterator[Cursor]:
    try:
        length = path.stat().st_size
        if length == 0:
            raise UserError(f"{path} is no GGUF file: it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield Cursor(path, content, length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


class Cursor:
    """Reads one value after the other and never past the end."""

    def __init__(self, path: Path, content: mmap.mmap, length: int) -> None:
        self.path, self.content, self.length = path, content, length
        self.position = 0

    def damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is damaged or cut off: {reason}")

    def take(self, size: int) -> bytes:
        self._insist(size)
        self.position += size
        return self.content[self.position - size : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, smallest: int) -> int:
        """How many things follow, each of at least `smallest` bytes."""
        count: int = self.number("Q")
        if count * smallest > self.length - self.position:
            raise self.damaged(f"at byte {self.position} it claims {count} entries, which is more than it holds")
        return count

    def text(self) -> str:
        content = self.take(self.count(1))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text before byte {self.position} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(self.number("I"))
        if kind not in NUMBERS:
            raise self.damaged(f"at byte {self.position} stands a value of the unknown type {kind}")
        return self.number(NUMBERS[kind])

    def _array(self, kind: int) -> list[Any]:
        if kind == STRING:
            return [self.text() for _ in range(self.count(8))]
        if kind not in NUMBERS:
            raise self.damaged(f"at byte {self.position} stands an array of the unknown type {kind}")
        count = self.count(struct.calcsize(f"<{NUMBERS[kind]}"))
        return list(struct.unpack(f"<{count}{NUMBERS[kind]}", self.take(struct.calcsize(f"<{count}{NUMBERS[kind]}"))))

    def _insist(self, size: int) -> None:
        if self.position + size > self.length:
            raise self.damaged(f"at byte {self.position} it lacks {self.position + size - self.length} bytes")
