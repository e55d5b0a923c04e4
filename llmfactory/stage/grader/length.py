"""A penalty for answers that come near the most tokens allowed (Yu et al. 2025, DAPO, equation 13)."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.stage.grader.grader import Answer, Grader
from llmfactory.stage.grader.text_spec import Length


class LengthGrader(Grader):
    def __init__(self, spec: Length, max_tokens: int) -> None:
        self.most = max_tokens if spec.most is None else spec.most
        self.soft = max(1, self.most // 5) if spec.soft is None else min(spec.soft, self.most)

    def grade(self, answers: Sequence[Answer]) -> list[float]:
        return [self._one(len(answer.tokens)) for answer in answers]

    def _one(self, tokens: int) -> float:
        return max(-1.0, min(0.0, (self.most - self.soft - tokens) / self.soft))
