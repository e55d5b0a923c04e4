"""Hashes of contents: kept, true, shared by processes, never in the way."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import llmfactory.data.source.digest as digest
from llmfactory.core.errors import UserError
from llmfactory.data.source.digest import NAME, digests


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthree")
    os.utime(path, (1e9, 1e9))
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(digest, "make", refused)


def test_it_is_the_hash_of_the_content(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "UNIT", 5)
    monkeypatch.setattr(digest, "BLOCK", 5)
    (found,) = digests([file], tmp_path / "cache")
    assert found.content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.lines == (0, 1, 2)  # before bytes 0, 5, 10
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(file.read_bytes())
    assert [it.content for it in digests([copy, file, copy], tmp_path / "cache")] == [found.content] * 3


def test_it_is_kept_until_the_file_changes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digests([file], tmp_path / "cache")
    with monkeypatch.context() as patch:
        forget(patch)
        assert digests([file], tmp_path / "cache") == first
        os.utime(file, (2e9, 1.1e9))
        with pytest.raises(AssertionError):
            digests([file], tmp_path / "cache")
    file.write_bytes(b"one\ntwo\nthreE")  # of the same size
    os.utime(file, (1e9, 1e9 + 1))
    assert digests([file], tmp_path / "cache") != first
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_of_this_moment_is_not_remembered(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(file)
    digests([file], tmp_path / "cache")
    forget(monkeypatch)
    with pytest.raises(AssertionError):
        digests([file], tmp_path / "cache")


@pytest.mark.parametrize("kind", ["damaged", "folder", "no folder"])
def test_a_table_that_cannot_be_kept_costs_only_time(file: Path, tmp_path: Path, kind: str) -> None:
    cache = tmp_path / "cache"
    if kind == "no folder":
        cache.write_text("in the way")
    else:
        cache.mkdir()
        (cache / NAME).mkdir() if kind == "folder" else (cache / NAME).write_bytes(b"no database at all" * 100)
    assert digests([file], cache)[0].content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert kind != "damaged" or not (cache / NAME).exists()


def test_a_file_that_changes_while_it_is_hashed_is_an_error(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = iter([(1, 1, 1), (2, 1, 1)])
    monkeypatch.setattr(digest, "stamp", lambda path: next(stamps))
    with pytest.raises(UserError, match=f"{file} has changed while it was being read"):
        digests([file], tmp_path / "cache")


def test_processes_share_it(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(str(i))
        os.utime(tmp_path / f"{i}.txt", (1e9, 1e9))
    code = (
        "import sys; from pathlib import Path; from llmfactory.data.source.digest import digests\n"
        "print([it.content for it in digests(sorted(Path(sys.argv[1]).glob('*.txt')), Path(sys.argv[1]) / 'cache')])"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(4)]
    results = [process.communicate()[0] for process in running]
    assert len(set(results)) == 1
    assert all(process.returncode == 0 for process in running)
    with sqlite3.connect(tmp_path / "cache" / NAME) as table:
        assert table.execute("SELECT count(*) FROM digests").fetchone() == (30,)
    table.close()
