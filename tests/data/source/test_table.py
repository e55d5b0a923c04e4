"""CSV and TSV against Python's reader, and rows that are none."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.spec import Files
from tests.data.source.conftest import Read


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_that_were_written(read: Read, tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    texts = ["x" + "".join(random_.choices('ab",\n\r\té中 ', k=random_.randrange(30))) for _ in range(30)]
    path, written = tmp_path / "a.csv", io.StringIO()
    writer = csv.DictWriter(written, ["id", "text"], lineterminator=random_.choice(["\n", "\r\n"]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({"id": i, "text": text} for i, text in enumerate(texts))
    path.write_bytes(b"\xef\xbb\xbf" + written.getvalue().encode())
    documents, _ = read(Files(files=[str(path)]))
    assert [d.text for d in documents] == texts
    rows = [json.loads(d.text) for d in read(Files(files=[str(path)], field=None))[0]]
    assert rows == [{"id": str(i), "text": text} for i, text in enumerate(texts)]


def test_tsv_has_no_quotes(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tn\n"He said\t1\nshe "did"\t2\n')
    assert [d.text for d in read(Files(files=[str(path)]))[0]] == ['"He said', 'she "did"']


def test_rows_that_are_none_are_set_aside_with_their_lines(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'text,n\nfine,1\nshort\n"un"quoted,2\nlong,1,2\n\nb\xffd,3\nz\x00ro,3\n"two\nlines",4\n,5\n"open,6\nlost,7\n'
    )
    with pytest.raises(UserError, match=f"{path}, line 3: no row: 1 fields where the first line names 2 columns"):
        read(Files(files=[str(path)]))
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [(d.name, d.text) for d in documents] == [(f"{path}, line 2", "fine"), (f"{path}, line 9", "two\nlines")]
    assert [(bad.where.removeprefix(f"{path}, line "), bad.reason) for bad in account.bads] == [
        ("3", "no row"),
        ("4", "no row"),
        ("5", "no row"),
        ("7", "invalid utf-8"),
        ("8", "a zero byte"),
        ("12", "no row"),
    ]
    assert "(lines 12 to 13)" in account.bads[-1].detail
    assert account.drops.by_reason["empty document"].samples == [f"{path}, line 11"]


def test_a_field_without_end_takes_no_rows_with_it(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"' + "x\n" * 60 + '"\ntwo\n')
    documents, account = read(Files(files=[str(path)], bad_share=1.0, max_record_bytes=50))
    assert [d.text for d in documents] == ["one", "two"]
    assert [bad.where for bad in account.bads] == [f"{path}, line 3"]


@pytest.mark.parametrize(
    ("header", "said"), [("a,b", r"no column 'text' among \['a', 'b'\]"), ("text,text", "two columns have one name")]
)
def test_a_header_that_does_not_fit_is_an_error(read: Read, tmp_path: Path, header: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(UserError, match=said):
        read(Files(files=[str(path)], bad_share=1.0))
