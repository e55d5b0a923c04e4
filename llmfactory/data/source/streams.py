"""Bytes of files: opened, unpacked and cut into lines, always in pieces of bounded size."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from llmfactory.core.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 20
SMALL = 64 << 20
"""Bytes that anything may unpack to."""


class Compression(Enum):
    gz = ".gz"
    zst = ".zst"
    xz = ".xz"
    bz2 = ".bz2"


class Damaged(Exception):
    """What follows in a file, or in a member of an archive, cannot be read."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


Stamp = tuple[int, int, int]
"""Size, time of the last change in ns, number of the inode."""


def stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def opened(path: Path) -> BinaryIO:
    """`open(path, "rb")` whose failures name the file."""
    try:
        return path.open("rb", buffering=BLOCK)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class Budget:
    """How much a file may unpack to: what is small anyway, or a multiple of what it has on disk."""

    def __init__(self, packed: int, max_expansion: float) -> None:
        self.limit = SMALL + int(packed * max_expansion)
        self.packed, self.max_expansion = packed, max_expansion
        self.spent = 0

    def spend(self, size: int) -> None:
        self.spent += size
        if self.spent > self.limit:
            raise Damaged(
                "unpacks to too much",
                f"{self.packed} bytes unpack to more than {self.limit}. If that is right: data.source.max_expansion="
                f"{10 * self.max_expansion:g}",
            )


class Unpacker(Protocol):
    """As `bz2.BZ2Decompressor`, which those of xz and zst are like."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class Gunzip:
    """zlib's, in the form of the others."""

    def __init__(self) -> None:
        self.zlib = zlib.decompressobj(31)  # with gzip's header and checksum
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self.zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self.zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        out = self.zlib.decompress(self.zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(out) < max_length and not self.zlib.unconsumed_tail
        return out


def _zst() -> Unpacker:
    """Also of frames that refer back up to 2 GiB (`--long=31`), as large dumps do."""
    unpacker: Unpacker = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 31})
    return unpacker


UNPACKERS: dict[Compression, Callable[[], Unpacker]] = {
    Compression.gz: Gunzip,
    Compression.zst: _zst,
    Compression.xz: lzma.LZMADecompressor,
    Compression.bz2: bz2.BZ2Decompressor,
}
Errors = (zlib.error, zstd.ZstdError, lzma.LZMAError, OSError, EOFError)


class Unpacked(io.RawIOBase):
    """The content of a compressed stream, of all its parts. Raises `Damaged` where it ends early: the libraries' own file objects
    take a zst file that stops between two blocks for a whole one."""

    def __init__(self, file: BinaryIO, kind: Compression, budget: Budget) -> None:
        self.file, self.kind, self.budget = file, kind, budget
        self.unpacker = UNPACKERS[kind]()
        self.begun = False
        """Whether the part that is read has any bytes."""
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        out = self._read(len(view))
        self.budget.spend(len(out))
        view[: len(out)] = out
        return len(out)

    def _read(self, size: int) -> bytes:
        while True:
            if self.unpacker.eof:
                self.rest = self.unpacker.unused_data
                self.unpacker, self.begun = UNPACKERS[self.kind](), False
            data = b""
            if self.unpacker.needs_input:
                data, self.rest = self.rest or self.file.read(BLOCK >> 3), b""
                if not self.begun:  # padding with zeros may stand behind a part
                    data = data.lstrip(b"\x00") or self._block_after_zeros(data)
                if not data:
                    if self.begun:
                        raise Damaged("truncated", f"the {self.kind.name} data ends too early")
                    return b""
                self.begun = True
            try:
                out = self.unpacker.decompress(data, size)
            except Errors as error:
                raise Damaged(f"damaged {self.kind.name} data", str(error)) from error
            if out:
                return out

    def _block_after_zeros(self, zeros: bytes) -> bytes:
        data = zeros
        while data and not data.strip(b"\x00"):
            data = self.file.read(BLOCK >> 3)
        return data.lstrip(b"\x00")


class Counted(io.RawIOBase):
    """A member of an archive, against the budget of the whole."""

    def __init__(self, file: Any, budget: Budget, errors: tuple[type[Exception], ...]) -> None:
        self.file, self.budget, self.errors = file, budget, errors

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self.file.read(len(view))
        except self.errors as error:
            raise Damaged("damaged", str(error) or type(error).__name__) from error
        self.budget.spend(len(data))
        view[: len(data)] = data
        return len(data)


def unpacked(file: BinaryIO, kind: Compression | None, budget: Budget) -> BinaryIO:
    return io.BufferedReader(Unpacked(file, kind, budget), BLOCK) if kind else file


def whole(file: BinaryIO, limit: int) -> bytes:
    """All of it. Raises `Damaged` if that is more than the limit."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise Damaged(*too_long(limit))
    return data


def too_long(limit: int) -> tuple[str, str]:
    return "too long", f"more than data.source.max_record_bytes={limit}"


def lines(file: BinaryIO, limit: int, number: int = 1) -> Iterator[tuple[int, bytes, int]]:
    """(number, line with its end, its size). Of one longer than the limit only the beginning comes, its size being larger."""
    read = file.readline
    while line := read(limit + 1):
        size = len(line)
        if size > limit and line[-1:] != b"\n":
            while more := read(limit):
                size += len(more)
                if more[-1:] == b"\n":
                    break
            yield number, line[:limit], max(size, limit + 1)
        else:
            yield number, line, size
        number += 1


def seek_line(file: BinaryIO, start: int) -> bool:
    """Go to the first line that begins at or after a place; returns whether the place was within a line, which is left behind."""
    if start == 0:
        return False
    file.seek(start - 1, os.SEEK_SET)
    while piece := file.readline(BLOCK):
        if piece[-1:] == b"\n":
            break
    return file.tell() > start
