"""The process in which a user's function grades: `python -m llmfactory.stage.grader.calling package.module:function`. A line of JSON in for each
answer, a line out. What the function prints goes to the standard error."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main(place: str) -> None:
    out = os.dup(1)
    os.dup2(2, 1)

    def say(**found: Any) -> None:
        os.write(out, json.dumps(found).encode() + b"\n")

    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        say(detail=f"{type(error).__name__}: {error}")
        return
    say(ready=True)
    for line in sys.stdin:
        try:
            grade = function(*json.loads(line))
        except Exception as error:
            say(raised=type(error).__name__)
        else:
            say(grade=told(grade))


def told(grade: Any) -> float | str | None:
    """A grade as it can be written down; of what is no number, its kind."""
    try:
        return None if grade is None else float(grade)
    except (TypeError, ValueError, OverflowError):
        return type(grade).__name__


if __name__ == "__main__":
    main(sys.argv[1])
