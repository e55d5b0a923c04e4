"""Documents on disk: texts in one file, names in another, an index, and a page that says what should be there.

A shard is written once by one process and read by many. It holds the documents of one source.
"""

from __future__ import annotations

import itertools
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.checksum import Damaged, describe, verify

ABOUT = "about.json"
TEXTS, NAMES, INDEX = "texts.bin", "names.bin", "index.npy"
ROW = np.dtype([("text", "<i8"), ("name", "<i8"), ("group", "<u8"), ("evaluated", "<u1")])
"""Where a document's text and name end, its group's number, and whether it may be held out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document of a shard."""

    name: str
    text: str
    group: int
    evaluated: bool


def group_number(group: str) -> int:
    """Hash of a group's name, 64 bits."""
    return int.from_bytes(sha256(group.encode(errors="replace")).digest()[:8], "big")


class ShardWriter:
    """Adds up in memory only a few numbers a document."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self._texts = (folder / TEXTS).open("wb", buffering=1 << 20)
        self._names = (folder / NAMES).open("wb", buffering=1 << 16)
        self._text_ends, self._name_ends = array("q"), array("q")
        self._groups, self._evaluated = array("Q"), array("B")
        self.bytes = self._name_bytes = 0

    def add(self, name: str, text: str, group: int, evaluated: bool) -> int:
        """The number of bytes of its text."""
        data, named = text.encode(), name.encode(errors="replace")
        self._texts.write(data)
        self._names.write(named)
        self.bytes += len(data)
        self._name_bytes += len(named)
        self._text_ends.append(self.bytes)
        self._name_ends.append(self._name_bytes)
        self._groups.append(group)
        self._evaluated.append(evaluated)
        return len(data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._texts.close()
        self._names.close()

    def close(self, **about: Any) -> None:
        """Without it there is no shard. `about` is kept beside the counts."""
        self._texts.close()
        self._names.close()
        index = np.empty(len(self._groups), ROW)
        columns = (self._text_ends, self._name_ends, self._groups, self._evaluated)
        for column, values in zip(("text", "name", "group", "evaluated"), columns, strict=True):
            index[column] = values
        np.save(self.folder / INDEX, index)
        write_about(self.folder, source=self.source, documents=len(index), bytes=self.bytes, **about)


def write_about(folder: Path, **about: Any) -> None:
    """Say what is in a folder, last of all."""
    about["files"] = describe(folder)
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder says of itself."""
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about


def check_about(folder: Path) -> dict[str, Any]:
    """The same; raises Damaged where the folder's files are not what it says."""
    try:
        about = read_about(folder)
        verify(folder, about["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / ABOUT}: {error}") from error
    return about


def forget_texts(folder: Path) -> None:
    """Free the disk of a shard whose texts nobody reads any more. Its account and index stay, and it counts as whole.

    Several processes may do so at once: the account is replaced as a whole, and before anything is taken away.
    """
    about = read_about(folder)
    texts = [name for name in (TEXTS, NAMES) if about["files"].pop(name, None) is not None]
    if texts:
        fresh = folder / f"{ABOUT}.{os.getpid()}"
        fresh.write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
        fresh.rename(folder / ABOUT)
    for name in (TEXTS, NAMES):
        (folder / name).unlink(missing_ok=True)


class Shard:
    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.about = read_about(folder) if about is None else about
        self.source: str = self.about["source"]
        self.bytes: int = self.about["bytes"]

    def __len__(self) -> int:
        return int(self.about["documents"])

    @cached_property
    def index(self) -> NDArray[np.void]:
        return np.load(self.folder / INDEX)  # type: ignore[no-any-return]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each text."""
        return np.diff(self.index["text"], prepend=0)

    def read(self, first: int = 0, stop: int | None = None) -> Iterator[Entry]:
        """Documents from `first` on, one after the other; only one is in memory."""
        return self.some(range(first, len(self) if stop is None else stop))

    def some(self, numbers: Iterable[int]) -> Iterator[Entry]:
        """Documents of these numbers, one after the other."""
        index = self.index
        ends, name_ends, groups, evaluated = (index[name] for name in ("text", "name", "group", "evaluated"))
        text_at = name_at = -1
        with (self.folder / TEXTS).open("rb", buffering=1 << 20) as texts, (self.folder / NAMES).open("rb") as names:
            for number in numbers:
                text_from, name_from = (int(those[number - 1]) if number else 0 for those in (ends, name_ends))
                if text_at != text_from:
                    texts.seek(text_from)
                if name_at != name_from:
                    names.seek(name_from)
                text_at, name_at = int(ends[number]), int(name_ends[number])
                text, name = texts.read(text_at - text_from).decode(), names.read(name_at - name_from).decode()
                yield Entry(name, text, int(groups[number]), bool(evaluated[number]))

    def entry(self, number: int) -> Entry:
        return next(self.some([number]))


class Shards:
    """Several shards as one sequence of documents."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum([len(shard) for shard in shards], dtype=np.int64)])
        """[shards + 1], number of each shard's first document among all."""

    @classmethod
    def of(cls, folder: Path) -> Shards:
        """Those in a folder, which are named by their numbers."""
        return cls([Shard(path) for path in sorted(path for path in folder.iterdir() if path.name.isdigit())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def entry(self, number: int) -> Entry:
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.shards[shard].entry(number - int(self.starts[shard]))

    def pieces(self, size: int) -> list[Piece]:
        """Runs of documents of one shard with about `size` bytes of text each: what one task works on."""
        found = []
        for number, shard in enumerate(self.shards):
            if len(shard):
                ends = shard.index["text"]
                cuts = np.searchsorted(ends, np.arange(size, shard.bytes, size)) if shard.bytes > size else np.empty(0, np.int64)
                borders = np.unique(np.concatenate([[0], cuts, [len(shard)]])).tolist()
                for first, stop in itertools.pairwise(borders):
                    weight = int(ends[stop - 1]) - (int(ends[first - 1]) if first else 0)
                    found.append(Piece(number, first, stop, int(self.starts[number]) + first, weight))
        return found


@dataclass(frozen=True, slots=True)
class Piece:
    """Documents `first` up to `stop` of a shard."""

    shard: int
    first: int
    stop: int
    start: int
    """Number of the first one among all documents."""
    bytes: int
