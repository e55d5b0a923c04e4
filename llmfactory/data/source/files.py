"""Files of the user: names, folders and globs to paths, bytes to lines, each failure with the file's name in it."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from llmfactory.core.errors import UserError

MANY = 20
"""From so many files on, the documents of one file are held out together; below it each document stands alone."""


def resolve(names: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Every file that the names, folders and globs stand for, each once, sorted; folders give files with these suffixes."""
    found: set[Path] = set()
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = {file for suffix in suffixes for file in path.rglob(f"*{suffix}") if file.is_file()}
            if not inside:
                raise UserError(f"data.source.files: no {' or '.join(suffixes)} file in the folder {name}")
            found |= inside
        elif path.exists():
            found.add(path)
        elif glob.has_magic(name):
            matches = {Path(match) for match in glob.glob(str(path), recursive=True)}
            files = {match for match in matches if match.is_file()}
            if not files:
                raise UserError(f"data.source.files: nothing matches {name} (from the folder {Path.cwd()})")
            found |= files
        else:
            raise UserError(f"data.source.files: no such file: {name} (from the folder {Path.cwd()})")
    return sorted(found)


def by_file(paths: Sequence[Path]) -> dict[Path, str]:
    """The group of each file's documents where the files are many, else nothing. No name of a folder further up is in it."""
    return {path: "/".join(path.parts[-2:]) for path in paths} if len(paths) >= MANY else {}


def digest(paths: Sequence[Path], *options: object) -> str:
    """Hash of the contents of the files, in order, and of the options that say how they are read."""
    total = hashlib.sha256(repr(options).encode())
    for path in paths:
        content = hashlib.sha256()
        with opened(path) as file:
            while block := file.read(1 << 20):
                content.update(block)
        total.update(content.digest())
    return total.hexdigest()


class opened:
    """`open(path, "rb")` whose failures name the file."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = path.open("rb")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(self, *_: object) -> None:
        self.file.close()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends, numbered from 1. A file with a zero byte is no text."""
    with opened(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if b"\x00" in line:
                    raise UserError(f"{path}, line {number}: a zero byte: this is a binary file, not text")
                yield number, line
        except OSError as error:
            raise UserError(f"cannot read {path} after line {number}: {error.strerror or error}") from error
