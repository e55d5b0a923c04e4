"""Which encoding the bytes of a text are in."""

from __future__ import annotations

import codecs
import io
import re
from typing import TYPE_CHECKING, BinaryIO

from llmfactory.data.source.streams import BLOCK, Damaged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AUTO = "auto"
SAMPLE = 1 << 16
"""Bytes that are looked at to tell."""
MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
)
MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
XML = re.compile(rb"""<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]{2,40})["']""")


def told(sample: bytes) -> str:
    """The encoding of a file that begins so: its byte order mark says, or it is utf-8, or the likeliest of all."""
    for mark, name in MARKS:
        if sample.startswith(mark):
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError:
        import charset_normalizer

        found = charset_normalizer.from_bytes(sample).best()
        return found.encoding if found else "utf-8"


def is_wide(encoding: str) -> bool:
    """Whether line ends take several bytes, so that bytes cannot be cut into lines."""
    return "\n".encode(encoding) != b"\n"


def sample_of(file: BinaryIO) -> bytes:
    """The beginning, which is read again by what comes after; a stream's buffer gives at least what it has."""
    assert isinstance(file, io.BufferedReader)
    return file.peek(SAMPLE)[:SAMPLE]


class Transcoded(io.RawIOBase):
    """A stream of another encoding, in utf-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.file, self.encoding = file, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.rest, self.ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self.rest and not self.ended:
            data = self.file.read(BLOCK >> 2)
            self.ended = not data
            try:
                self.rest = self.decoder.decode(data, final=self.ended).encode()
            except UnicodeError as error:
                raise Damaged(f"invalid {self.encoding}", str(error)) from error
        out, self.rest = self.rest[: len(view)], self.rest[len(view) :]
        view[: len(out)] = out
        return len(out)


def utf8(file: BinaryIO, encoding: str) -> BinaryIO:
    return io.BufferedReader(Transcoded(file, encoding), BLOCK)


def html(raw: bytes, encoding: str, header: str | None = None) -> str:
    """A page's text, by what it says of itself. Raises UnicodeDecodeError where it is in no encoding that is said or known.

    Order: byte order mark, what the server said, the page's own `meta` or XML declaration, the option (WHATWG's order).
    """
    start = raw[:4096]
    named = [mark_name for mark, mark_name in MARKS if start.startswith(mark)][:1]
    named += [header] if header else []
    named += [match[1].decode() for rule in (XML, META) if (match := rule.search(start))]
    for name in named:
        try:
            if codecs.lookup(name)._is_text_encoding:
                return raw.decode("gb18030" if name.lower() in ("gb2312", "gbk") else name).removeprefix("\ufeff")
        except (LookupError, UnicodeDecodeError):
            continue
    return raw.decode(told(raw[:SAMPLE]) if encoding == AUTO or named else encoding)
