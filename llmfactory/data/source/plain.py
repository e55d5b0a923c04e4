"""Plain text: a file is a document, or several with a separating line between them. A page of HTML: always one."""

from __future__ import annotations

from typing import BinaryIO

from llmfactory.data.source import encoding
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.streams import lines, too_long, whole

PIECE = 8 << 20
"""Bytes of a file without separators that make a document; a longer one is cut where a paragraph ends, or at least a line."""
MARK = b"\xef\xbb\xbf"


class Piece:
    """Lines on their way to be a document."""

    def __init__(self, reading: Reading, number: int) -> None:
        self.reading, self.number = reading, number
        self.lines: list[bytes] = []
        self.numbers: list[int] = []
        self.size = 0
        """Also of lines that are not kept: a document larger than allowed has none."""

    def add(self, number: int, line: bytes) -> None:
        self.size += len(line)
        if self.reading.spec.split_on is None or self.size <= self.reading.spec.max_record_bytes:
            self.lines.append(line)
            self.numbers.append(number)
        elif self.lines:
            del self.lines[1:]

    def document(self, name: str) -> Texts:
        reading, data = self.reading, b"".join(self.lines)
        if reading.spec.split_on is not None and self.size > reading.spec.max_record_bytes:
            reading.bad(name, too_long(reading.spec.max_record_bytes), self.size, data)
            return
        try:
            text = data.decode(reading.encoding)
            reading.account.good += len(self.lines)
        except UnicodeDecodeError:
            text = "".join(map(self._line, self.numbers, self.lines))
        yield from reading.account_for(name, text, 0, self.size)

    def _line(self, number: int, raw: bytes) -> str:
        reading = self.reading
        try:
            text = raw.decode(reading.encoding)
        except UnicodeDecodeError as error:
            bad = f"invalid {reading.encoding}", f"{error.reason} at byte {error.start}"
            reading.bad(f"{reading.where}, line {number}", bad, len(raw), raw)
            return ""
        reading.account.good += 1
        return text


def text(file: BinaryIO, reading: Reading) -> Texts:
    if reading.spec.split_on is None and reading.stop is None and file.seekable():
        found = _at_once(file, reading)
        if found is not None:
            yield from reading.account_for(reading.where, *found)
            return
        file.seek(0)
    yield from _line_by_line(file, reading)


def _at_once(file: BinaryIO, reading: Reading) -> tuple[str, int, int] | None:
    """(text, lines, bytes) of a file that is small and in order, as nearly all are; None: it takes a closer look."""
    data = file.read(PIECE)
    if len(data) == PIECE or len(data) > reading.spec.max_record_bytes or b"\x00" in data:
        return None
    try:
        found = (data.removeprefix(MARK) if reading.encoding == "utf-8" else data).decode(reading.encoding)
    except UnicodeDecodeError:
        return None
    return found, data.count(b"\n") + (data[-1:] != b"\n"), len(data)


def _line_by_line(file: BinaryIO, reading: Reading) -> Texts:
    spec, where, limit = reading.spec, reading.where, reading.spec.max_record_bytes
    split = None if spec.split_on is None else spec.split_on.encode(reading.encoding)
    at = file.tell() if reading.stop is not None else 0
    # A document belongs to the piece of the file in which the separator before it stands.
    piece = Piece(reading, reading.line) if split is None or not reading.start else None
    alone = split is None and reading.stop is None
    for number, raw, size in lines(file, limit, reading.line):
        is_long = size > len(raw)
        if number == 1 and reading.encoding == "utf-8":
            raw = raw.removeprefix(MARK)
        beyond = reading.stop is not None and at >= reading.stop
        at += size
        if split is None and (beyond or (piece and _is_full(piece, raw))):
            if beyond:
                break
            assert piece
            yield from piece.document(f"{where}, line {piece.number}")
            piece, alone = Piece(reading, number), False
        if split is not None and raw.rstrip(b"\r\n") == split:
            if piece:
                yield from piece.document(f"{where}, line {piece.number}")
            piece = None if beyond else Piece(reading, number + 1)
            if beyond:
                return
        elif piece and is_long:
            reading.bad(f"{where}, line {number}", too_long(limit), size, raw)
        elif piece and b"\x00" in raw:
            reading.bad(f"{where}, line {number}", ("a zero byte", "this is a binary file, not text"), size, raw)
        elif piece:
            piece.add(number, raw)
        elif beyond:
            return
    if piece and (piece.size or piece.number == 1 or split is not None):
        yield from piece.document(where if alone else f"{where}, line {piece.number}")


def _is_full(piece: Piece, line: bytes) -> bool:
    return piece.size + len(line) > 2 * PIECE or (piece.size > PIECE and not piece.lines[-1].strip() and bool(line.strip()))


def page(file: BinaryIO, reading: Reading) -> Texts:
    raw = whole(file, reading.spec.max_record_bytes)
    yield from page_of(raw, reading, reading.where)


def page_of(raw: bytes, reading: Reading, name: str, header: str | None = None) -> Texts:
    if b"\x00" in raw and not raw.startswith((b"\xff\xfe", b"\xfe\xff")) and not (header or "").lower().startswith("utf-16"):
        reading.bad(name, ("a zero byte", "this is a binary file, not a page"), len(raw), raw)
        return
    try:
        found = encoding.html(raw, reading.spec.encoding, header)
    except UnicodeDecodeError as error:
        reading.bad(name, (f"invalid {error.encoding}", f"{error.reason} at byte {error.start}"), len(raw), raw)
        return
    yield from reading.text(name, found, len(raw), raw)
