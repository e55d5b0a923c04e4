"""How near an answer comes to a length."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import TargetLength


class TargetLengthGrader(Grader):
    def __init__(self, spec: TargetLength) -> None:
        self.target = spec.target

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [-min(1.0, abs(len(answer.tokens) - self.target) / self.target) for answer in answers]
