"""Encodings that are told, found out, or said by pages themselves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.encoding import Transcoded, html, told
from llmfactory.data.source.spec import Files
from tests.data.source.conftest import Read

GERMAN = "Der Übermut der Öffentlichkeit über die Größe der Straße ärgert schöne Mädchen.\n" * 4
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. Широкая электрификация южных губерний.\n" * 4
CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。闰余成岁，律吕调阳。\n" * 4


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-8"),
        (GERMAN, "utf-8-sig"),
        (GERMAN, "utf-16"),
        (GERMAN, "utf-32"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (CHINESE, "gb18030"),
        (CHINESE, "utf-8"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_it_is_found_out(read: Read, tmp_path: Path, text: str, encoding: str, name: str) -> None:
    import json

    line = json.dumps({"text": text.strip()}, ensure_ascii=False)
    content = {"a.txt": text, "a.jsonl": line, "a.csv": f'text\n"{text.strip()}"\n', "a.json": f"[{line}]"}[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert [d.text.strip() for d in read(Files(files=[str(path)], encoding="auto"))[0]] == [text.strip()]
    if encoding not in ("utf-8-sig", "utf-8"):
        assert [d.text.strip() for d in read(Files(files=[str(path)], encoding=encoding))[0]] == [text.strip()]


@pytest.mark.parametrize("end", range(1, 12))
def test_a_sample_may_end_within_a_character(end: int) -> None:
    assert told("a中é🙂".encode()[:end]) == "utf-8"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8", "latin-1"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_stream_is_turned_into_utf_8(encoding: str, size: int) -> None:
    text = "a\nÜ é\r\n" * 50
    stream = Transcoded(io.BytesIO(text.encode(encoding)), encoding)
    found = b""
    while data := stream.read(size):
        assert len(data) <= size
        found += data
    assert found.decode() == text


@pytest.mark.parametrize(
    ("raw", "header", "expected"),
    [
        ("<p>ü".encode(), None, "<p>ü"),
        (b"\xef\xbb\xbf<p>\xc3\xbc", "latin-1", "<p>ü"),
        (b"<meta charset='windows-1252'><p>\xfc\x80", None, "<meta charset='windows-1252'><p>ü€"),
        (b'<META http-equiv=x content="text/html; charset=cp1251">\xef', None, None),
        (b'<?xml version="1.0" encoding="koi8-r"?>\xc1', None, '<?xml version="1.0" encoding="koi8-r"?>а'),
        (b"<p>\xfc", "iso-8859-1", "<p>ü"),
        ("<p>ü".encode(), "no-such-thing", "<p>ü"),
        ("<meta charset=ascii><p>ü".encode(), None, "<meta charset=ascii><p>ü"),  # which it is not
        ("<meta charset=hex>ü".encode(), None, "<meta charset=hex>ü"),
    ],
)
def test_a_page_says_its_own(raw: bytes, header: str | None, expected: str | None) -> None:
    assert html(raw, "utf-8", header) == (expected or '<META http-equiv=x content="text/html; charset=cp1251">п')


def test_a_page_in_no_encoding_is_named(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(b"<p>\xff\xfe\x81")
    with pytest.raises(UserError, match=f"{path}: invalid utf-8: invalid start byte at byte 3"):
        read(Files(files=[str(path)]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_an_encoding_that_ends_within_a_character_is_named(read: Read, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "1"}\n'.encode("utf-16") + b"\x00")
    with pytest.raises(UserError, match=f"{path}.*: invalid utf-16: "):
        read(Files(files=[str(path)], encoding="utf-16", field=None))
