"""Text files: names, folders, globs, separators, encodings, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.source.account import Account, insist_on_share
from llmfactory.data.source.document import Document
from llmfactory.data.source.paths import MANY
from llmfactory.data.source.spec import Files, Format


def read(account: Account | None = None, **fields: object) -> list[Document]:
    source = Files(format=Format.text, **fields).build()  # type: ignore[arg-type]
    account = Account(source.bad_share) if account is None else account
    documents = [document for unit in source.units() for document in source.documents(unit, account)]
    if account.bads:
        insist_on_share(len(account.bads), len(account.bads) + account.good, source.bad_share, account.bads[0].where)
    return documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("z.txt", "a/one.txt", "a/b/two.txt", "a/b/skip.bin"):
        (tmp_path / name).write_text(f"text of {name}\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["z.txt"], ["z.txt"]),
        (["."], ["a/b/two.txt", "a/one.txt", "z.txt"]),
        (["**/*.txt"], ["a/b/two.txt", "a/one.txt", "z.txt"]),
        (["*.txt", "a/*.txt"], ["a/one.txt", "z.txt"]),
        (["z.txt", "z.txt", "*.txt"], ["z.txt"]),
        (["a/b/skip.bin"], ["a/b/skip.bin"]),
    ],
)
def test_names_folders_and_globs(folder: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], expected: list[str]) -> None:
    monkeypatch.chdir(folder)
    assert [document.name for document in read(files=names)] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.txt", "no such file: none.txt"), ("x/*.txt", "nothing matches"), ("empty", "no .txt or .md or .rst")],
)
def test_what_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        read(files=[name])


def test_a_separator_cuts_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\nmore\n---\r\n\n---\n--- not a separator\n")
    account = Account(1.0)
    assert [d.text for d in read(account, files=[str(path)], split_on="---")] == ["one\nmore\n", "--- not a separator\n"]
    assert account.drops.plain()["empty document"]["samples"] == [f"{path}, line 4"]


def test_text_is_kept_as_it_is_but_for_the_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\tc \n\n\xc3\xa9")
    assert [d.text for d in read(files=[str(path)])] == ["a\r\nb\tc \n\n\u00e9"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32", "cp1251"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path, text = tmp_path / "a.txt", "первый\nвторой\n" if encoding == "cp1251" else "caf\u00e9\nna\u00efve\n"
    path.write_bytes(text.encode(encoding))
    assert [d.text for d in read(files=[str(path)], encoding=encoding)] == [text]


def test_an_undecodable_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nbad \xff here\nfine\n")
    with pytest.raises(UserError, match=rf"{path}, line 2: invalid utf-8: .* at byte 4.*data.source.bad_share"):
        read(files=[str(path)])


def test_undecodable_lines_within_the_share_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nbad \xff here\nfine\nfine\n")
    account = Account(1.0)
    assert [d.text for d in read(account, files=[str(path)], bad_share=0.25)] == ["fine\nfine\nfine\n"]
    assert account.drops.plain()["invalid utf-8"]["documents"] == 1
    assert "line 2" in account.drops.plain()["invalid utf-8"]["samples"][0]
    with pytest.raises(UserError, match=r"1 of 4 records cannot be read, more than data.source.bad_share=0.2 .*line 2"):
        read(files=[str(path)], bad_share=0.2)


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\n\x00\x01\x02")
    with pytest.raises(UserError, match=rf"{path}, line 2: a zero byte: .*binary"):
        read(files=[str(path)])
    account = Account(1.0)
    assert [d.text for d in read(account, files=[str(path)], bad_share=1.0)] == ["abc\n"]
    assert [(bad.where, bad.content) for bad in account.bads] == [(f"{path}, line 2", "\x00\x01\x02")]


def test_undecodable_wide_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("x".encode("utf-16") + b"\x00")
    with pytest.raises(UserError, match=f"{path}: invalid utf-16"):
        read(files=[str(path)], encoding="utf-16")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")

    def refused(self: Path, *_: object, **__: object) -> None:  # chmod does not stop the root user
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=f"cannot read {path}: Permission denied"):
        read(files=[str(path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may read everything")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(UserError, match=f"cannot read {path}"):
        read(files=[str(path)])


def test_copies_share_a_group_and_many_files_are_groups(tmp_path: Path) -> None:
    few = [tmp_path / f"{i}.txt" for i in range(3)]
    for i, path in enumerate(few):
        path.write_text(f"text {i % 2}")
    groups = [d.group for d in read(files=[str(path) for path in few])]
    assert groups[0] == groups[2] != groups[1]
    for i in range(MANY):
        (tmp_path / f"{i}.txt").write_text("one\n-\ntwo")
    groups = [d.group for d in read(files=[str(tmp_path)], split_on="-")]
    assert len(groups) == 2 * MANY
    assert len(set(groups)) == MANY


def test_the_fingerprint_follows_content_and_options_not_dates(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.txt", Files(files=[str(tmp_path / "a.txt")])
    path.write_text("one")
    first = spec.build().fingerprint()
    os.utime(path, (1, 1))
    assert spec.build().fingerprint() == first
    assert Files(files=[str(path)], split_on="o").build().fingerprint() != first
    assert Files(files=[str(path)], encoding="latin-1").build().fingerprint() != first
    assert Files(files=[str(path)], bad_share=0.5).build().fingerprint() != first
    path.write_text("two")
    assert spec.build().fingerprint() != first


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError) as found:
        Files(files=[], encoding="utf-9", bad_share=2.0)
    assert {problem.path for problem in found.value.problems} == {"files", "encoding", "bad_share"}


@pytest.mark.parametrize("seed", range(80))
def test_a_file_read_at_once_is_as_one_read_line_by_line(tmp_path: Path, seed: int) -> None:
    """Packed ones cannot be read twice and so take the long way."""
    random_ = random.Random(seed)
    pieces = [b"line\n", b"\n", b"\r\n", "é中🙂".encode(), b" ", b"x" * 30] + [b"\xff", b"\x00", b"\xef\xbb\xbf"] * (seed % 2)
    content = b"".join(random_.choices(pieces, k=random_.randrange(1, 9)))
    content = random_.choice([b"", b"\xef\xbb\xbf"]) + content
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    found = []
    for name in ("a.txt", "a.txt.gz"):
        account = Account(1.0)
        spec = Files(files=[str(tmp_path / name)], bad_share=1.0, max_record_bytes=(40, 1000)[seed % 3 > 0])
        source = spec.build()
        documents = [d.text for unit in source.units() for d in source.documents(unit, account)]
        found.append((documents, account.good, [(bad.where[-1:], bad.reason, bad.content) for bad in account.bads]))
    assert found[0] == found[1]
