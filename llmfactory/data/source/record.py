"""One record of a file: from its bytes or its values to the text of a document, or the reason why there is none."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import orjson

Bad = tuple[str, str]
"""(reason, detail)"""


def from_json(raw: bytes, field: str | None, encoding: str = "utf-8") -> str | Bad:
    """The text of a record that is a JSON object; all of the object where no field is named."""
    if b"\x00" in raw:
        return "a zero byte", "this is binary data"
    strict = True
    try:
        text: bytes | str = raw if encoding == "utf-8" else raw.decode(encoding)
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError:  # it is several times as fast, and stricter than Python's, which has the last word
            record, strict = json.loads(text), False
    except UnicodeDecodeError as error:
        return f"invalid {encoding}", f"{error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:
        return "invalid JSON", f"{error.msg} at column {error.colno}"
    except RecursionError:
        return "invalid JSON", "nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        return "invalid JSON", str(error)
    if not isinstance(record, dict):
        return "no object", f"a {type(record).__name__} where an object is expected"
    if field is None and strict:
        return (text if isinstance(text, str) else text.decode()).strip()
    return from_fields(record, field)


def from_fields(record: Mapping[str, Any], field: str | None) -> str | Bad:
    if field is None:
        try:
            return checked(json.dumps(record, ensure_ascii=False, default=_plain), "the record")
        except (RecursionError, ValueError, TypeError) as error:
            return "no JSON", str(error)
    value: Any = record
    for name in [field] if field in record else field.split("."):
        if not isinstance(value, dict) or name not in value:
            return "missing field", f"no field {field!r} among {sorted(map(str, record))[:10]}"
        value = value[name]
    return as_text(value, field)


def as_text(value: Any, field: str) -> str | Bad:
    """Of a field: a string, or a list of strings, its paragraphs."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n\n".join(value)
    if not isinstance(value, str):
        return "wrong type", f"field {field!r} is a {type(value).__name__}, not a string"
    return checked(value, f"field {field!r}")


def checked(text: str, what: str) -> str | Bad:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # "\ud800" is legal JSON and no text
        return "invalid utf-8", f"{what} holds half of a surrogate pair"
    return text


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes as base64, dates and decimals as they are written."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
