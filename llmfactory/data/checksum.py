"""Whether files are what they were when they were written: their sizes and checksums, kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
BLOCKS = 64


class Damaged(Exception):
    """A file is not what its folder says."""


def checksum(path: Path) -> str:
    """Of the whole file up to 64 MiB, of 64 blocks of 1 MiB spread evenly over a larger one: it must cost no second read."""
    size = path.stat().st_size
    total = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in _blocks(size):
            file.seek(start)
            total.update(file.read(BLOCK))
    return total.hexdigest()


def _blocks(size: int) -> Sequence[int]:
    if size <= BLOCK * BLOCKS:
        return range(0, size, BLOCK)
    return [(size - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file that stands in a folder, by its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in paths}


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Damaged, naming the file."""
    for name, expected in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise Damaged(f"{path} has {size} bytes instead of {expected['bytes']}")
            if checksum(path) != expected["checksum"]:
                raise Damaged(f"{path}: wrong checksum")
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror or error}") from error
