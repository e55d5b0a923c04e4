"""Catalogue of stages that keep the best of what a model writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.stage.base_spec import StageSpec
from llmfactory.stage.grader.spec import GraderSpec

if TYPE_CHECKING:
    from llmfactory.stage.job import StageJob


class Share(Enum):
    """Which of the prompts are answered."""

    train = "those that are not held out"
    held_out = "those that are"


@dataclass(kw_only=True, slots=True)
class Rejection(StageSpec):
    """The model of `init` answers each prompt several times, graders judge the answers, and the best are kept to learn from
    (best-of-n: Nakano et al. 2021; rejection sampling: Touvron et al. 2023, section 3.2.3)."""

    keeps: ClassVar[bool] = True
    graders: dict[str, GraderSpec] = field(default_factory=dict)
    """Who judges answers, by name: 'stage/grader=[exact_match,length]'. The reward is the weighted sum of their grades."""
    samples: int = 8
    """Answers to each prompt, n."""
    max_tokens: int = 128
    """Tokens of an answer at most."""
    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token, so that all answers to a prompt are the same."""
    top_p: float | None = None
    """Sample among the fewest most likely tokens whose probabilities add up to it; None: no limit."""
    stop: list[str] = field(default_factory=list)
    """Texts at which an answer ends; they are not part of it."""
    most: int = 1
    """Different answers to a prompt that are kept at most, the best first."""
    threshold: float | None = None
    """Answers are kept whose reward is this at least; None: whatever it is."""
    unfinished: bool = False
    """Also keep answers that were cut off at max_tokens."""
    pairs: bool = False
    """Also write the best and the worst answer to each prompt as a pair, where their rewards differ."""
    batch_size: int = 8
    """Prompts that are answered at once, by `samples` answers each. Changes memory and speed, and which random numbers are drawn."""
    prompts: int | None = None
    """How many prompts are answered, the first ones; None: all of them."""
    share: Share = Share.train
    """Which of the prompts are answered."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "samples", "max_tokens", "most", "batch_size", "prompts")
        yield from at_least(self, 0.0, "temperature")
        yield from between(self, 0.01, 1.0, "top_p")
        if "" in self.stop:
            yield Problem("stop", self.stop, "an empty text stands everywhere, so it cannot end one", "stop=[]")
        if not self.graders:
            yield Problem("graders", {}, "nobody judges the answers", "stage/grader=[exact_match]")
        if self.temperature == 0 and self.samples > 1:
            reason = f"at temperature 0 all {self.samples} answers to a prompt are the same"
            yield Problem("temperature", self.temperature, reason, "temperature=1.0")

    def build(self) -> StageJob:
        from llmfactory.stage.rejection import RejectionJob

        return RejectionJob(self)
