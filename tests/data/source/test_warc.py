"""Pages of WARC files; records that are no pages, and damage."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.spec import Files
from tests.data.source.conftest import Read


def record(kind: str, uri: str, content: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n\r\n"


def response(body: bytes, status: str = "200 OK", kind: str = "text/html", **headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


PAGE = "<html><p>Grüße, 世界</p></html>"
CHUNKED = b"5\r\n<html\r\n4;x=y\r\n><p>\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (response(PAGE.encode()), PAGE),
        (response(PAGE.encode("utf-16"), kind="text/html; charset=utf-16"), PAGE),
        (response(PAGE.encode("gb18030"), kind='text/html; charset="gb2312"'), PAGE),
        (response(b'<meta charset="latin-1">Gr\xfc\xdfe'), '<meta charset="latin-1">Grüße'),
        (response(CHUNKED, Transfer_Encoding="chunked"), "<html><p>"),
        (response(b"<html>crawler unchunked it", Transfer_Encoding="chunked"), "<html>crawler unchunked it"),
        (response(gzip.compress(PAGE.encode(), mtime=0), Content_Encoding="gzip"), PAGE),
        (response(zlib.compress(PAGE.encode()), Content_Encoding="deflate"), PAGE),
        (response(PAGE.encode(), Content_Encoding="gzip"), PAGE),
        (response(PAGE.encode(), kind="application/xhtml+xml"), PAGE),
        (response(PAGE.encode(), Content_Length="5"), PAGE),
    ],
)
@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages(read: Read, tmp_path: Path, content: bytes, expected: str, name: str) -> None:
    path = tmp_path / name
    data = record("response", "http://a/", content)
    path.write_bytes(gzip.compress(record("warcinfo", "", b"x")) + gzip.compress(data) if name.endswith("gz") else data)
    documents, account = read(Files(files=[str(path)]))
    number = 2 if name.endswith("gz") else 1
    assert [(d.name, d.text) for d in documents] == [(f"{path}, record {number} (http://a/)", expected)]
    assert account.good == 1


def test_what_is_no_page_is_told(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(
        record("request", "http://a/", b"GET / HTTP/1.1\r\n\r\n")
        + record("response", "http://b/", response(b"x", status="404 Not Found"))
        + record("response", "http://c/", response(b"\x89PNG", kind="image/png"))
        + record("resource", "http://d/", b"x")
        + record("response", "http://e/", b"no http at all")
        + record("response", "http://f/", response(b"\x00\x01"))
        + record("response", "http://g/", response(b"\x1f\x8bxxxx", Content_Encoding="gzip"))
        + record("response", "http://h/", response(b"\x1b\x03\x00\xf8\xa7", Content_Encoding="br"))
        + record("response", "http://i/", response(b"<p>" + b"x" * 3000))
        + record("response", "http://j/", response(gzip.compress(b"<p>" + b"x" * 3000), Content_Encoding="gzip"))
        + record("response", "http://k/", response(b"<p>good"))
        + record("conversion", "http://l/", "WET: 文".encode())
    )
    documents, account = read(Files(files=[str(path)], bad_share=1.0, max_record_bytes=1000))
    assert [d.text for d in documents] == ["<p>good", "WET: 文"]
    reasons = {bad.where.split("//")[1][0]: bad.reason for bad in account.bads}
    assert reasons == {
        "e": "damaged HTTP response",
        "f": "a zero byte",
        "g": "damaged HTTP response",
        "h": "unknown coding of an HTTP response",
        "i": "too long",
        "j": "too long",
    }
    left_out = {reason: drop.documents for reason, drop in account.drops.by_reason.items() if reason not in reasons.values()}
    assert left_out == {
        "a response that is no page (HTTP status)": 1,
        "a response that is no page (another media type)": 1,
        "a record without a page": 1,
    }


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (record("response", "http://b/", response(b"<p>x"))[:-20], "truncated: the file ends within record 2"),
        (b"WARC/1.0\r\nWARC-Ty", "truncated: the file ends within the headers of record 2"),
        (b"WARC/1.0\r\nWARC-Type: response\r\n\r\n", "record 2 does not say its length"),
        (b"WARC/1.0\r\nContent-Length: -5\r\n\r\n", "record 2 has a negative length"),
        (b"WARC/1.0\r\n" + b"A: b\r\n" * 2000 + b"\r\n", "record 2 has more than 1000 headers"),
        (b"garbage\r\n", "record 2 begins with b'garbage"),
    ],
)
def test_damage_is_named_and_what_came_before_is_kept(read: Read, tmp_path: Path, tail: bytes, said: str) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(record("response", "http://a/", response(b"<p>one")) + tail)
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        read(Files(files=[str(path)]))
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert [d.text for d in documents] == ["<p>one"]
    assert len(account.bads) == 1
