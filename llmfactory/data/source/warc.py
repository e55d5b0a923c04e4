"""WARC files of web crawls: pages from `response` records, plain text from `conversion` records (Common Crawl's WET files).

The records' frame is read here rather than by a library: those take a file that was cut off for one that ends, and hold a
record in memory whatever its size. ISO 28500; HTTP by Python's own reader.
"""

from __future__ import annotations

import http.client
import io
import re
import zlib
from collections.abc import Iterator
from email.message import Message
from typing import BinaryIO, cast

from llmfactory.data.source.plain import page_of
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.record import Bad
from llmfactory.data.source.streams import BLOCK, Damaged, too_long

LINE = 1 << 16
"""Bytes of a header line at most."""
HEADERS = 1000
"""Lines of headers at most."""
PAGES = re.compile(r"text/html|application/xhtml\+xml", re.IGNORECASE)
CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


class Records:
    """Of a stream: (number, headers, size of the content); `content` reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, str], int]]:
        number = 0
        while headers := self._headers(number + 1):
            number += 1
            try:
                size = int(headers["content-length"])
            except (KeyError, ValueError) as error:
                raise Damaged("damaged WARC data", f"record {number} does not say its length") from error
            if size < 0:
                raise Damaged("damaged WARC data", f"record {number} has a negative length")
            self.left = size
            yield number, headers, size
            while self.left:
                self._take(BLOCK, number)

    def content(self, number: int) -> bytes:
        parts = []
        while self.left:
            parts.append(self._take(BLOCK, number))
        return b"".join(parts)

    def _take(self, size: int, number: int) -> bytes:
        data = self.file.read(min(size, self.left))
        if not data:
            raise Damaged("truncated", f"the file ends within record {number}")
        self.left -= len(data)
        return data

    def _headers(self, number: int) -> dict[str, str]:
        """Empty at the end of the file."""
        line = self.file.readline(LINE)
        while line in (b"\r\n", b"\n"):  # two stand between records
            line = self.file.readline(LINE)
        if not line:
            return {}
        if not line.startswith(b"WARC/"):
            raise Damaged("damaged WARC data", f"record {number} begins with {line[:40]!r}")
        headers: dict[str, str] = {}
        for _ in range(HEADERS):
            line = self.file.readline(LINE)
            if not line:
                raise Damaged("truncated", f"the file ends within the headers of record {number}")
            if line in (b"\r\n", b"\n"):
                return headers
            name, _, value = line.decode("utf-8", "replace").partition(":")
            headers[name.strip().lower()] = value.strip()
        raise Damaged("damaged WARC data", f"record {number} has more than {HEADERS} headers")


def read(file: BinaryIO, reading: Reading) -> Texts:
    records, limit, account = Records(file), reading.spec.max_record_bytes, reading.account
    for number, headers, size in records:
        name = f"{reading.where}, record {number} ({headers.get('warc-target-uri', '').strip('<>')})"
        kind = headers.get("warc-type", "")
        if kind not in ("response", "conversion"):
            if kind in ("", "resource"):
                account.left_out("a record without a page", name, size)
            continue
        if size > limit:
            reading.bad(name, too_long(limit), size, "")
            continue
        raw = records.content(number)
        if kind == "conversion":
            yield from reading.text(name, _text(raw), size, raw)
            continue
        found = page(raw, limit)
        if isinstance(found, tuple):
            reading.bad(name, found, size, raw)
        elif isinstance(found, str):
            account.left_out(found, name, size)
        else:
            yield from page_of(found.body, reading, name, found.charset)


class Page:
    def __init__(self, body: bytes, charset: str | None) -> None:
        self.body, self.charset = body, charset


class Socket:
    """What `http.client` reads a response from."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


def page(raw: bytes, limit: int) -> Page | str | Bad:
    """Of an HTTP response; or why it is of no use (text), or what is wrong with it (reason, detail)."""
    response = http.client.HTTPResponse(cast("object", Socket(raw)))  # type: ignore[arg-type]
    try:
        response.begin()
        if response.status != 200:
            return "a response that is no page (HTTP status)"
        headers: Message = response.headers
        if not PAGES.match(headers.get("Content-Type", "").strip()):
            return "a response that is no page (another media type)"
        # Crawlers store bodies as they came or with their chunks taken away, and then leave both headers as they were.
        body = _body(raw, headers) if not _is_chunked(raw, headers) else response.read()
    except (http.client.HTTPException, ValueError, OSError) as error:
        return "damaged HTTP response", str(error) or type(error).__name__
    coding = headers.get("Content-Encoding", "").strip().lower()
    if coding in ("gzip", "x-gzip", "deflate") and body[:2] in (b"\x1f\x8b", b"\x78\x9c", b"\x78\x01", b"\x78\xda"):
        unpacker = zlib.decompressobj(47)  # of either kind
        try:
            body = unpacker.decompress(body, limit + 1)
        except zlib.error as error:
            return "damaged HTTP response", str(error)
        if len(body) > limit:
            return too_long(limit)
    elif coding in ("br", "zstd") and b"<" not in body[:1000]:
        return "unknown coding of an HTTP response", coding
    charset = CHARSET.search(headers.get("Content-Type", ""))
    return Page(body, charset[1] if charset else None)


def _body(raw: bytes, headers: Message) -> bytes:
    ends = [at + len(end) for end in (b"\r\n\r\n", b"\n\n") if (at := raw.find(end)) >= 0]
    return raw[min(ends) :] if ends else b""


def _is_chunked(raw: bytes, headers: Message) -> bool:
    if "chunked" not in headers.get("Transfer-Encoding", "").lower():
        return False
    return re.match(rb"[0-9a-fA-F]{1,8}[ \t;\r\n]", _body(raw, headers)) is not None


def _text(raw: bytes) -> str | Bad:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return "invalid utf-8", f"{error.reason} at byte {error.start}"
