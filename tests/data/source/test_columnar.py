"""Parquet and Arrow files: the column, rows that are none, pieces, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import llmfactory.data.source.files as files
from llmfactory.core.errors import UserError
from llmfactory.data.source.spec import Files
from tests.data.source.conftest import Read

ROWS: list[dict[str, Any]] = [
    {"id": i, "text": f"text {i} é", "meta": {"title": f"t{i}"}, "lines": ["a", f"b{i}"]} for i in range(50)
]


def write(path: Path, rows: list[dict[str, Any]], size: int = 7) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=size)
    elif path.suffix == ".feather":
        pa.feather.write_feather(table, path, chunksize=size)
    else:
        opened = pa.ipc.new_file if path.suffix == ".ipc" else pa.ipc.new_stream
        with opened(path, table.schema) as file:
            file.write_table(table, max_chunksize=size)
    return path


NAMES = ["a.parquet", "a.feather", "a.ipc", "a.arrow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("text", [row["text"] for row in ROWS]),
        ("meta.title", [row["meta"]["title"] for row in ROWS]),
        ("lines", ["\n\n".join(row["lines"]) for row in ROWS]),
    ],
)
def test_a_column_or_what_is_within_it(read: Read, tmp_path: Path, name: str, field: str, expected: list[str]) -> None:
    path = write(tmp_path / name, ROWS)
    documents, account = read(Files(files=[str(path)], field=field))
    assert [d.text for d in documents] == expected
    assert [d.name for d in documents] == [f"{path}, row {i}" for i in range(1, 51)]
    assert account.good == 50


@pytest.mark.parametrize("name", NAMES)
def test_whole_rows_are_json(read: Read, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    assert [json.loads(d.text) for d in read(Files(files=[str(path)], field=None))[0]] == ROWS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", [1, 500, 2000])
def test_pieces_give_what_the_whole_gives(
    read: Read, tmp_path: Path, name: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name, ROWS)
    spec = Files(files=[str(path)])
    whole = read(spec)[0]
    monkeypatch.setattr(files, "UNIT", unit)
    units = spec.build().units()
    assert len(units) == 8 if unit == 1 else 1 < len(units) <= 8
    assert read(spec)[0] == whole


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_text_are_set_aside(read: Read, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"text": "a"}, {"text": None}, {"text": " "}, {"text": "x" * 200}, {"text": "b"}])
    with pytest.raises(UserError, match=f"{path}, row 2: wrong type: field 'text' is a NoneType"):
        read(Files(files=[str(path)]))
    documents, account = read(Files(files=[str(path)], bad_share=1.0, max_record_bytes=100))
    assert [d.text for d in documents] == ["a", "b"]
    assert [(bad.where, bad.reason) for bad in account.bads] == [(f"{path}, row 2", "wrong type"), (f"{path}, row 4", "too long")]
    assert account.drops.by_reason["empty document"].samples == [f"{path}, row 3"]
    with pytest.raises(UserError, match=rf"{path} has no column 'body' among \['text'\]: data.source.field"):
        read(Files(files=[str(path)], field="body", bad_share=1.0))


def test_text_that_is_no_utf_8_is_set_aside(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    bad = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    with pa.ipc.new_stream(path, pa.schema([("text", pa.string())])) as file:
        file.write_batch(pa.record_batch([bad], ["text"]))
    documents, account = read(Files(files=[str(path)], bad_share=0.5))
    assert [d.text for d in documents] == ["a", "b"]
    assert [(bad.where, bad.reason) for bad in account.bads] == [(f"{path}, row 2", "invalid utf-8")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_named(read: Read, tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{path}.*(parquet|arrow)"):
        read(Files(files=[str(path)]))
    _, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [bad.where for bad in account.bads] == [str(path)]


@pytest.mark.parametrize("name", NAMES)
def test_damage_within_is_an_error_and_no_crash(read: Read, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    content = path.read_bytes()
    for place in range(8, len(content) - 8, max(1, len(content) // 60)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        documents, account = read(Files(files=[str(path)], bad_share=1.0))
        assert len(documents) + len(account.bads) > 0


def test_without_the_package_it_is_named(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = write(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow.*pip install 'llmfactory\[data\]'"):
        read(Files(files=[str(path)]))
