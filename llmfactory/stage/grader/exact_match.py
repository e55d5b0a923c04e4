"""The answer says the same as the right one."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from llmfactory.stage.grader.extraction import extract, references
from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import ExactMatch

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


class ExactMatchGrader(Grader):
    def __init__(self, spec: ExactMatch) -> None:
        self.spec = spec

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float:
        right = references(answer.record, self.spec.field)
        said = extract(answer.text, self.spec.take, self.spec.mark)
        return float(said is not None and self.normalized(said) in map(self.normalized, right))

    def normalized(self, text: str) -> str:
        """What is compared."""
        if self.spec.ignore_case:
            text = text.casefold()
        if self.spec.ignore_punctuation:
            text = text.translate(PUNCTUATION)
        if self.spec.ignore_articles:
            text = ARTICLES.sub(" ", text)
        return " ".join(text.split())
