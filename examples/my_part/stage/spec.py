from __future__ import annotations

from dataclasses import dataclass

from llmfactory.stage.spec import StageSpec


@dataclass(kw_only=True, slots=True)
class CountTokens(StageSpec):
    """How many tokens a text takes."""

    text: str
    """The text."""

    def build(self):
        from my_part.stage.count_tokens import CountTokensJob

        return CountTokensJob(self)
