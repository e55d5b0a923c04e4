"""The answer has a form as a whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import Format


def tagged(tags: Sequence[str]) -> str:
    """The regular expression of <a>...</a> <b>...</b> with nothing else, and none of the tags within."""
    names = [re.escape(tag) for tag in tags]
    inside = rf"(?:(?!</?(?:{'|'.join(names)})>).)*"
    return r"\s*".join(f"<{name}>{inside}</{name}>" for name in names)


class FormatGrader(Grader):
    def __init__(self, spec: Format) -> None:
        self.pattern = re.compile(tagged(spec.tags) if spec.pattern is None else spec.pattern, re.DOTALL)

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [float(self.pattern.fullmatch(answer.text.strip()) is not None) for answer in answers]
