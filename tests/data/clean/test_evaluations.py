"""Evaluation sets in every format, packed or not; what cannot be read is an error that names it."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.clean.evaluations import Evaluations

ITEMS = [
    {"question": "what is it", "choices": ["this", "那个"], "meta": {"source": "a book", "n": 3}},
    {"question": "and\nthis?", "choices": []},
]
TEXTS = ["what is it", "this", "那个", "a book", "and\nthis?"]


def texts(path: Path, *fields: str) -> list[str]:
    return [text for _, text in Evaluations([str(path)], list(fields), "here").texts]


def test_json_in_its_forms(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in ITEMS)
    files = {
        "a.jsonl": lines + "\n\n",
        "b.json": json.dumps(ITEMS),
        "c.json": json.dumps({"keywords": 3, "example": ITEMS}),
        "d.json": "\ufeff" + lines,  # lines, whatever they are called
        "e.ndjson": lines.replace("\n", "\r\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        assert texts(tmp_path / name) == TEXTS, name
        assert texts(tmp_path / name, "question") == ["what is it", "and\nthis?"]
        assert texts(tmp_path / name, "choices", "meta") == ["this", "那个", "a book"]
    assert len({Evaluations([str(tmp_path / name)], [], "here").hash for name in files}) == len(files)


def test_tables_and_text(tmp_path: Path) -> None:
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([["question", "answer"], ["a, b\nc", "x"], ["d"]])
        assert texts(tmp_path / name) == ["a, b\nc", "x", "d"]
        assert texts(tmp_path / name, "answer") == ["x"]
    (tmp_path / "a.txt").write_text("one item\n\nanother\n")
    assert texts(tmp_path / "a.txt") == ["one item", "", "another"]


def test_packed_files_and_folders(tmp_path: Path) -> None:
    content = "\n".join(map(json.dumps, ITEMS)).encode()
    for suffix, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)):
        (tmp_path / f"set.jsonl{suffix}").write_bytes(pack(content))
    sets = Evaluations([str(tmp_path)], ["question"], "here")
    assert sets.names == ["set.jsonl.bz2", "set.jsonl.gz", "set.jsonl.xz"]
    assert sets.texts == [(number, text) for number in range(3) for text in ("what is it", "and\nthis?")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": "x"}\n{"a": \n', "a.jsonl, line 2"),
        ("a.json", b'[{"a": "x"},', "a.json, line 1"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"[" * 200_000, "a.jsonl, line 1"),
        ("a.txt", b"fine\nn\xffo", "a.txt, line 2: not UTF-8"),
        ("a.csv", b'a,b\n1,2\n"x', "a.csv, line"),
        ("a.csv", b"a,b\n1,2,3\n", "3 cells under 2 names"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 100, mtime=0)[:-20], "a.jsonl.gz cannot be read: truncated"),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz cannot be read: damaged"),
        ("a.pdf", b"x", "none of .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        Evaluations([str(tmp_path / name)], [], "here")


def test_a_field_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "x", "n": 1}\n')
    with pytest.raises(UserError, match=r"here\.fields: no text in a field 'query' of a\.jsonl"):
        texts(tmp_path / "a.jsonl", "question", "query")
    with pytest.raises(UserError, match="no text in a field 'n'"):
        texts(tmp_path / "a.jsonl", "n")
    with pytest.raises(UserError, match=r"here\.files: no such file"):
        texts(tmp_path / "b.jsonl")
