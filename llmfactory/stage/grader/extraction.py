"""The part of an answer that is compared."""

from __future__ import annotations

import re
from typing import Any

from llmfactory.data.record.boxed import boxed
from llmfactory.stage.grader.text_spec import Take


def extract(text: str, take: Take, mark: str | None) -> str | None:
    """None: it has no such part."""
    if take is Take.whole:
        return text
    if take is Take.last_line:
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else None
    if take is Take.boxed:
        return boxed(text)
    assert mark is not None
    if take is Take.marker:
        _, found, rest = text.rpartition(mark)
        return rest.lstrip().partition("\n")[0] if found else None
    matches = list(re.finditer(mark, text))
    if not matches:
        return None
    return matches[-1][1] if matches[-1].re.groups else matches[-1][0]


def references(record: dict[str, Any], field: str) -> list[str]:
    """The right answers of a record, as texts. Raises KeyError where there is none."""
    found = record[field]
    return [str(one) for one in (found if isinstance(found, list) else [found])]
