"""The one way in which each kind of record is written, as plain data; every format of files (formats.py) is read into it.

| kind | fields |
|---|---|
| `conversation` | `messages`; where there are any, `tools` (JSON schemas) and `images` (paths, as the file names them) |
| `pair` | `prompt` (messages), `chosen`, `rejected` (messages that follow it); `margin` where the file has scores |
| `judged` | `prompt`, `answer` (messages), `label` (true: wanted) |
| `ranking` | `prompt`, `answers` (lists of messages, the best first); `scores` where the file has them |
| `scored` | `prompt`, `answer`, `score`; or, for processes, `prompt`, `steps` (texts), `scores` of each |
| `prompt` | `prompt` (messages that end with a question); `record`, an object with all that is known of it: `answer`, `tests`, ... |
| `item` | `question`, `choices`, `answer` (number of the right one); or `question`, `answers` (each is right) |

A message has `role` (system, user, assistant, tool), `content` (a text, or a list of `{"type": "text", "text": ...}` and
`{"type": "image"}`), and where it applies `tool_calls` and `weight` (0: an answer that is only read).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

Row = dict[str, Any]
"""An object of a file."""
Record = dict[str, Any]
"""One of the kinds above."""


class Kind(Enum):
    """What a record is for."""

    conversation = "a conversation"
    pair = "a pair of a chosen and a rejected answer"
    judged = "an answer with a label, wanted or not"
    ranking = "a ranking of answers"
    scored = "an answer with a score"
    item = "a question of an evaluation"
    prompt = "a prompt"


class BadRow(ValueError):
    """A row that is no record; `reason` is one of a few, `detail` what is wrong with this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Format:
    """A way in which files write records."""

    name: str
    kind: Kind
    fields: tuple[str, ...]
    """Those that it must have; a row that has them, and that `looks` like it, is of this format."""
    read: Callable[[Row], list[Record]]
    """A row may hold several records (the paths of a tree). Raises BadRow."""
    looks: Callable[[Row], bool] = lambda row: True

    def fits(self, row: Row) -> bool:
        return all(row.get(field) is not None for field in self.fields) and self.looks(row)


def text_of(row: Row, field: str, optional: bool = False) -> str:
    """A field that must be a text, and hold some unless it is optional."""
    value = row.get(field)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow("content that is no text", f"the field {field!r} is {_a(value)}")
    if not optional and not value.strip():
        raise BadRow("empty text", f"the field {field!r}")
    return value


def number_of(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):
        raise BadRow("a score that is no number", f"{what} is {value!r}")
    return float(value)


def _a(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
