"""A regular expression is found in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import Regex


class RegexGrader(Grader):
    def __init__(self, spec: Regex) -> None:
        self.pattern = re.compile(spec.pattern)

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [float(self.pattern.search(answer.text) is not None) for answer in answers]
