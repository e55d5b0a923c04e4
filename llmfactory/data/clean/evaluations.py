"""Texts of evaluation sets, read from files as they come: JSON, JSON lines, CSV, TSV, or text with an item a line, packed or not.

Nothing is left out: an item that could not be read would stay in the corpus.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.source.paths import resolve
from llmfactory.data.source.streams import Budget, Compression, Damaged, opened, unpacked, whole

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
PACKED = {kind.value: kind for kind in Compression}
SUFFIXES = (*KINDS, *(kind + packed for kind in KINDS for packed in PACKED))
EXPANSION = 100.0
LARGEST = 1 << 30
"""Bytes of a set, unpacked: it is kept in memory."""


class Evaluations:
    """The texts of all files, and a hash of them."""

    def __init__(self, names: Sequence[str], fields: Sequence[str], key: str) -> None:
        """`key`: where `files` and `fields` stand in the config, for messages."""
        self.files = resolve(names, SUFFIXES, f"{key}.files")
        self.texts: list[tuple[int, str]] = []
        """(number of the file, text)"""
        total, seen = sha256(), set()
        for number, path in enumerate(self.files):
            content = _content(path)
            total.update(sha256(content).digest())
            for field, text in _texts(path, content, key):
                if not fields:
                    self.texts.append((number, text))
                elif inside := [name for name in fields if name in field]:
                    seen.update(inside)
                    self.texts.append((number, text))
        self.hash = total.hexdigest()
        if missing := [name for name in fields if name not in seen]:
            shown = ", ".join(path.name for path in self.files[:5])
            raise UserError(f"{key}.fields: no text in a field {missing[0]!r} of {shown}: name the fields that the files have")

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.files]


def _content(path: Path) -> bytes:
    try:
        with opened(path) as file:
            budget = Budget(path.stat().st_size, EXPANSION)
            return whole(unpacked(file, PACKED.get(path.suffix.lower()), budget), LARGEST)
    except Damaged as error:
        raise UserError(f"{path} cannot be read: {error.reason}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


Found = Iterator[tuple[tuple[str, ...], str]]
"""(names of the fields that it stands in, from the outside in; the text)"""


def _texts(path: Path, content: bytes, key: str) -> Found:
    kind = Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}). Write it so") from error
    if kind == ".json":
        try:
            yield from _strings(json.loads(text))
            return
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise _broken(path, error.lineno, error.msg) from error
            kind = ".jsonl"  # by what it is, whatever it is called
        except RecursionError as error:
            raise _broken(path, 1, "nested too deeply") from error
    if kind in (".jsonl", ".ndjson"):
        yield from _of_lines(path, text)
    elif kind in (".csv", ".tsv"):
        yield from _of_table(path, text, "," if kind == ".csv" else "\t")
    elif kind == ".txt":
        yield from (((), line) for line in text.splitlines())
    else:
        raise UserError(f"{key}.files: {path} is none of {', '.join(KINDS)}, each also {', '.join(PACKED)}")


def _broken(path: Path, line: int, reason: str) -> UserError:
    return UserError(f"{path}, line {line}: {reason}. Mend it: an item that is not read would stay in the corpus")


def _of_lines(path: Path, text: str) -> Found:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise _broken(path, number, error.msg) from error
        except RecursionError as error:
            raise _broken(path, number, "nested too deeply") from error
        yield from _strings(record)


def _of_table(path: Path, text: str, delimiter: str) -> Found:
    """The first row names the fields."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        for row in rows:
            if len(row) > len(header):
                raise _broken(path, rows.line_num, f"{len(row)} cells under {len(header)} names")
            yield from (((name,), cell) for name, cell in zip(header, row, strict=False))
    except csv.Error as error:
        raise _broken(path, rows.line_num, str(error)) from error


def _strings(value: Any) -> Found:
    """Every text in a JSON value."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        names, value = waiting.pop()
        if isinstance(value, str):
            yield names, value
        elif isinstance(value, list):
            waiting += [(names, item) for item in reversed(value)]
        elif isinstance(value, dict):
            waiting += [((*names, name), item) for name, item in reversed(value.items())]
