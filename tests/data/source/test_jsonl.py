"""JSON lines: the field, and every way in which a line can be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account, insist_on_share
from llmfactory.data.source.document import Document
from llmfactory.data.source.spec import Files


def read(account: Account | None = None, **fields: object) -> list[Document]:
    source = Files(**fields).build()  # type: ignore[arg-type]
    account = Account(source.bad_share) if account is None else account
    documents = [document for unit in source.units() for document in source.documents(unit, account)]
    if account.bads:
        insist_on_share(len(account.bads), len(account.bads) + account.good, source.bad_share, account.bads[0].where)
    return documents


def test_the_field_is_the_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n", "body": "1"}\n\n{"text": "  ", "body": "2"}\n{"text": "\\u00e9", "body": "3"}')
    account = Account(1.0)
    assert [(d.text, d.name) for d in read(account, files=[str(path)])] == [
        ("one\n", f"{path}, line 1"),
        ("é", f"{path}, line 4"),
    ]
    assert account.drops.plain()["empty document"]["documents"] == 1
    assert [d.text for d in read(files=[str(tmp_path)], field="body")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "x"', "invalid JSON", "column"),
        (b'{"text": "\xff"}', "invalid utf-8", "byte 10"),
        (b'["text"]', "no object", "a list"),
        (b'{"other": "x"}', "missing field", "'text' among ['other']"),
        (b'{"text": 7}', "wrong type", "is a int"),
        (b'{"text": null}', "wrong type", "is a NoneType"),
        (b'{"text": "\\ud800"}', "invalid utf-8", "surrogate"),
        (b"[" * 100_000, "invalid JSON", ""),
    ],
)
def test_a_bad_line_is_named_or_within_the_share_dropped(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": "fine"}).encode() + b"\n" + line + b"\n" + json.dumps({"text": "good"}).encode())
    with pytest.raises(UserError) as found:
        read(files=[str(path)])
    assert str(found.value).startswith(f"{path}, line 2: {reason}")
    assert detail in str(found.value)
    account = Account(1.0)
    assert [d.text for d in read(account, files=[str(path)], bad_share=0.34)] == ["fine", "good"]
    assert account.drops.plain()[reason]["documents"] == 1
    with pytest.raises(UserError, match="1 of 3 records"):
        read(files=[str(path)], bad_share=0.3)


def test_the_fingerprint_follows_content_and_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1", "b": "2"}')
    first = Files(files=[str(path)], field="a").build().fingerprint()
    assert Files(files=[str(path)], field="b").build().fingerprint() != first
    path.write_text('{"a": "1", "b": "3"}')
    assert Files(files=[str(path)], field="a").build().fingerprint() != first
