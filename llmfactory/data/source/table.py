"""Tables of text: CSV as spreadsheets write it (quotes, line ends within a field), TSV as IANA defines it (no quotes).

The first row names the columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from llmfactory.core.errors import UserError
from llmfactory.data.source.plain import MARK
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.record import from_fields
from llmfactory.data.source.streams import lines, too_long


class Lines:
    """Of a table, decoded; knows where it is. Lines that cannot be read are set aside."""

    def __init__(self, file: BinaryIO, reading: Reading) -> None:
        self.file, self.reading = file, reading
        self.first, self.number = 0, 0
        """Of the row's lines, and of the last line."""
        self.quotes = 0
        """In the row's lines: an odd number stands within a field."""
        self.lines = self._lines()

    def __iter__(self) -> Iterator[str]:
        return self.lines

    def _lines(self) -> Iterator[str]:
        reading, limit = self.reading, self.reading.spec.max_record_bytes
        for number, raw, size in lines(self.file, limit):
            self.number = number
            name = f"{reading.where}, line {number}"
            if size > len(raw):
                reading.bad(name, too_long(limit), size, raw)
                continue
            if b"\x00" in raw:
                reading.bad(name, ("a zero byte", "this is a binary file, not text"), size, raw)
                continue
            try:
                line = (raw.removeprefix(MARK) if number == 1 else raw).decode(reading.encoding)
            except UnicodeDecodeError as error:
                reading.bad(name, (f"invalid {reading.encoding}", f"{error.reason} at byte {error.start}"), size, raw)
                continue
            self.first = self.first or number
            self.quotes += line.count('"')
            yield line

    def leave_field(self) -> None:
        """Go on behind the quote that closes the field."""
        while self.quotes % 2 and next(self.lines, None) is not None:
            pass


def comma(file: BinaryIO, reading: Reading) -> Texts:
    csv.field_size_limit(reading.spec.max_record_bytes)
    source = Lines(file, reading)
    yield from _read(csv.reader(source, strict=True), source, reading, quoted=True)


def tab(file: BinaryIO, reading: Reading) -> Texts:
    csv.field_size_limit(reading.spec.max_record_bytes)
    source = Lines(file, reading)
    yield from _read(csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE), source, reading, quoted=False)


def _read(rows: Iterator[list[str]], source: Lines, reading: Reading, quoted: bool) -> Texts:
    header: list[str] | None = None
    while True:
        source.first, source.quotes = 0, 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if quoted:
                source.leave_field()
            where = f"{reading.where}, line {source.first}"
            reading.bad(where, ("no row", f"{error} (lines {source.first} to {source.number})"), 0, "")
            continue
        name = f"{reading.where}, line {source.first}"
        if not row:
            continue
        if header is None:
            header = _columns(row, reading)
        elif len(row) != len(header):
            bad = "no row", f"{len(row)} fields where the first line names {len(header)} columns"
            reading.bad(name, bad, sum(map(len, row)), ",".join(row))
        else:
            size = sum(map(len, row))
            yield from reading.text(name, from_fields(dict(zip(header, row, strict=True)), reading.spec.field), size, "")


def _columns(row: list[str], reading: Reading) -> list[str]:
    field = reading.spec.field
    if len(set(row)) < len(row):
        raise UserError(f"{reading.where}, line 1: two columns have one name: {row}")
    if field is not None and field not in row:
        raise UserError(f"{reading.where} has no column {field!r} among {row[:20]}: data.source.field=...")
    return row
