"""Hashes of files' contents, kept, so that a corpus that has not changed is not read again to learn that.

A file is taken for the same as long as its path, size, time of last change and inode are; only its content counts, so a copy
elsewhere or with another date has the same hash. What was changed within the last seconds is hashed again: a change could fall
into the same tick of the clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.source.streams import BLOCK, Stamp, opened, stamp

UNIT = 64 << 20
"""Bytes of a large file that are read as one piece."""
FRESH_NS = 3_000_000_000
"""Files changed so recently are not remembered."""
THREADS = 8
TOGETHER = 500
"""Files that are written down at once: each time takes as long as hashing many small ones."""
NAME = "digests.sqlite"


@dataclass(frozen=True, slots=True)
class Digest:
    """Of one file."""

    content: str
    """Hash of its bytes."""
    lines: tuple[int, ...]
    """Line ends before byte 0, UNIT, 2 UNIT, ...: so that a piece knows the numbers of its lines."""
    stamp: Stamp
    """When it was hashed."""


def digests(paths: Sequence[Path], folder: Path | None = None) -> list[Digest]:
    """Of each file. `folder`: where they are kept; None: the user's cache folder."""
    marks = [stamp(path) for path in paths]
    with _table(folder or default_folder()) as table:
        known = [_known(table, path, mark) for path, mark in zip(paths, marks, strict=True)]
        missing = [(path, mark) for path, mark, digest in zip(paths, marks, known, strict=True) if digest is None]
        made: dict[Path, Digest] = {}
        fresh: list[tuple[Path, Digest]] = []
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:  # hashing lets other threads work
            for (path, _), digest in zip(missing, threads.map(lambda it: make(*it), missing), strict=True):
                made[path] = digest
                fresh.append((path, digest))
                if len(fresh) == TOGETHER or digest.stamp[0] > UNIT:
                    _keep(table, fresh)
                    fresh.clear()
        _keep(table, fresh)
    return [digest or made[path] for path, digest in zip(paths, known, strict=True)]


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmfactory"


def make(path: Path, mark: Stamp) -> Digest:
    """By reading all of the file. Raises UserError where it is not what the stamp says, before or after that."""
    total, ends, seen, done = hashlib.sha256(), [0], 0, 0
    with opened(path) as file:
        try:
            while block := file.read(BLOCK):
                total.update(block)
                if mark[0] > UNIT:
                    seen += block.count(b"\n")
                done += len(block)
                if done % UNIT == 0:
                    ends.append(seen)
        except OSError as error:
            raise UserError(f"cannot read {path} after byte {done}: {error.strerror or error}") from error
    unchanged(path, mark)
    return Digest(total.hexdigest(), tuple(ends), mark)


def unchanged(path: Path, mark: Stamp) -> None:
    """Raises UserError where a file is not what it was."""
    if stamp(path) != mark:
        raise UserError(f"{path} has changed while it was being read: start again when nothing writes to it")


@contextmanager
def _table(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """None where it cannot be kept: a read-only folder, a damaged file; then everything is hashed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / NAME, timeout=30, isolation_level=None)
    except (OSError, sqlite3.Error):
        yield None
        return
    with closing(connection):
        try:
            connection.execute("PRAGMA synchronous=OFF")  # what a power cut loses is hashed again
            connection.execute(
                "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, inode INTEGER,"
                " content TEXT, lines TEXT)"
            )
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.OperationalError):  # damaged, not busy: the next run begins a new one
                (folder / NAME).unlink(missing_ok=True)
            yield None
            return
        yield connection


def _known(table: sqlite3.Connection | None, path: Path, mark: Stamp) -> Digest | None:
    if table is None:
        return None
    try:
        row = table.execute(
            "SELECT content, lines FROM digests WHERE path = ? AND size = ? AND mtime = ? AND inode = ?", (_key(path), *mark)
        ).fetchone()
    except sqlite3.Error:
        return None
    return Digest(row[0], tuple(json.loads(row[1])), mark) if row else None


def _keep(table: sqlite3.Connection | None, fresh: Sequence[tuple[Path, Digest]]) -> None:
    if table is None:
        return
    now = time.time_ns()
    rows = [
        (_key(path), *digest.stamp, digest.content, json.dumps(digest.lines))
        for path, digest in fresh
        if now - digest.stamp[1] > FRESH_NS
    ]
    try:
        table.execute("BEGIN IMMEDIATE")
        table.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)
        table.execute("COMMIT")
    except sqlite3.Error:  # a full disk or a busy table costs only time
        if table.in_transaction:
            table.rollback()


def _key(path: Path) -> str:
    return os.fsencode(path.absolute()).decode(errors="backslashreplace")
