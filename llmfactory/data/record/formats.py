"""Which format a row is written in, and what it means. A row is looked at by itself, so a file may hold several formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmfactory.data.record import conversations, evaluations, preferences, prompts
from llmfactory.data.record.record import BadRow, Format, Kind, Record, Row

FORMATS: tuple[Format, ...] = (*preferences.FORMATS, *conversations.FORMATS, *evaluations.FORMATS, *prompts.FORMATS)
"""In the order in which they are tried: those that ask more before those that ask less."""
NAMES = tuple(one.name for one in FORMATS)


def format_of(row: Row, kinds: Sequence[Kind] = tuple(Kind)) -> Format | None:
    """The first that fits; None: none does."""
    return next((one for one in FORMATS if one.kind in kinds and one.fits(row)), None)


def named(name: str) -> Format:
    return next(one for one in FORMATS if one.name == name)


def parsed(text: str) -> Row:
    """The object of a JSON text. Raises BadRow."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("invalid JSON", str(error)) from error
    if not isinstance(row, dict):
        raise BadRow("no object", f"a {type(row).__name__} where an object is expected")
    return row


def renamed(row: Row, fields: Mapping[str, str]) -> Row:
    """With the fields under the names that formats know; `fields`: known name -> the file's."""
    missing = sorted(theirs for theirs in fields.values() if theirs not in row)
    if missing:
        raise BadRow("a field is missing", f"{', '.join(missing)} among {sorted(row)[:10]}")
    rest = {name: value for name, value in row.items() if name not in fields.values()}
    return {**rest, **{ours: row[theirs] for ours, theirs in fields.items()}}


def read(row: Row, kind: Kind, name: str | None = None) -> tuple[str, list[Record]]:
    """(name of the format, the records of a row). `name`: the format that it must have; None: whichever fits."""
    if name is not None:
        found = named(name)
        missing = [field for field in found.fields if row.get(field) is None]
        if missing:
            raise BadRow("not of the format that is asked for", f"{name} needs {', '.join(missing)} beside {sorted(row)[:10]}")
        return name, found.read(row)
    fit = format_of(row, [kind])
    if fit is None:
        other = format_of(row)
        if other is None:
            raise BadRow("no known format", f"fields {sorted(row)[:10]}")
        raise BadRow(f"not {kind.value}", f"it looks like {other.kind.value} ({other.name})")
    return fit.name, fit.read(row)


def dumped(value: Any) -> str:
    """The one JSON of a value. Raises BadRow where a text is none (half of a surrogate pair)."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("invalid utf-8", "half of a surrogate pair") from error
    return text
