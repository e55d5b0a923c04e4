"""JSON lines: an object a line."""

from __future__ import annotations

from typing import BinaryIO

from llmfactory.data.source.plain import MARK
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.record import from_json
from llmfactory.data.source.streams import lines, too_long


def read(file: BinaryIO, reading: Reading) -> Texts:
    spec, where, account = reading.spec, reading.where, reading.account
    field, limit, encoding = spec.field, spec.max_record_bytes, reading.encoding
    stop = reading.stop
    at = file.tell() if stop is not None else 0
    for number, raw, size in lines(file, limit, reading.line):
        if stop is not None and at >= stop:
            return
        at += size
        is_long = size > len(raw)
        if number == 1:
            raw = raw.removeprefix(MARK)
        if raw.isspace():
            continue
        name = f"{where}, line {number}"
        found = too_long(limit) if is_long else from_json(raw, field, encoding)
        if isinstance(found, tuple):
            reading.bad(name, found, size, raw)
            continue
        account.good += 1
        if found and not found.isspace():
            yield name, found
        else:
            account.left_out("empty document", name, size)
