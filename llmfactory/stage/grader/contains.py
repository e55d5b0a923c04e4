"""Texts that should, and should not, stand in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import Contains


class ContainsGrader(Grader):
    def __init__(self, spec: Contains) -> None:
        self.spec = spec
        self.wanted, self.unwanted = ([self._folded(text) for text in texts] for texts in (spec.texts, spec.without))

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [self._one(self._folded(answer.text)) for answer in answers]

    def _one(self, text: str) -> float:
        met = sum(one in text for one in self.wanted) + sum(one not in text for one in self.unwanted)
        return met / (len(self.wanted) + len(self.unwanted))

    def _folded(self, text: str) -> str:
        return text.casefold() if self.spec.ignore_case else text
