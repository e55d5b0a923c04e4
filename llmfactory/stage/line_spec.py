"""Catalogue of stages that put others together, and of the one that measures what they made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least
from llmfactory.stage.base_spec import StageSpec

if TYPE_CHECKING:
    from llmfactory.stage.job import StageJob

NAME = re.compile(r"[A-Za-z]\w*")
"""Of a step."""


@dataclass(kw_only=True, slots=True)
class Line(StageSpec):
    """A model's life as one command: jobs one after the other, each of which may start from what an earlier one left.

    Each step's run folder is named after everything that its outcome depends on, below `<output_dir>/steps`: what is there is not
    made again, by whichever line. Overrides on the command line that are not about the line itself go to all steps.
    """

    keeps: ClassVar[bool] = True
    steps: dict[str, list[str]] = field(default_factory=dict)
    """The overrides of each job, by name, in order; `@name` in a value is the run folder of the step of that name."""
    changes: dict[str, list[str]] = field(default_factory=dict)
    """More overrides of some steps, behind all others: stage.changes.sft=["optim.lr=1e-4"]."""
    seeds: list[int] = field(default_factory=list)
    """Seeds with which the whole line is run, one after the other, and over which intervals are taken; empty: the job's own."""

    def problems(self) -> Iterator[Problem]:
        if not self.steps:
            yield Problem("steps", {}, "a line needs a step at least", "steps.base=['stage=pretrain']")
        for name in self.steps:
            if not NAME.fullmatch(name):
                yield Problem("steps", name, "the name of a step is a word: a letter, then letters, digits and _")
        for name in self.changes.keys() - self.steps.keys():
            yield Problem(f"changes.{name}", self.changes[name], f"there is no such step; there are {', '.join(self.steps)}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            yield Problem("seeds", self.seeds, "must be different numbers from 0 on", "seeds=[0,1,2]")


@dataclass(kw_only=True, slots=True)
class Examine(StageSpec):
    """Measure the model of `init` on the held-out records of `data`, one by one, and others against it on the same ones.

    Conversations: log-likelihood per token of the answers. Pairs and rankings: how often the best answer is the likeliest, each by
    its mean log-likelihood per token; of a reward model, how often it is scored highest.
    """

    keeps: ClassVar[bool] = True
    against: dict[str, str] = field(default_factory=dict)
    """Other runs that are measured on the same records, by name; differences are to the model of `init`."""
    judge: str | None = None
    """Run of a reward model that scores what the models answer; None: nothing is answered."""
    max_tokens: int = 64
    """With `judge` or `samples`: tokens of an answer at most."""
    temperature: float = 1.0
    """With `judge`: divides the logits of what is drawn; 0: always the likeliest token."""
    samples: int = 0
    """Answers that the report shows, of each model to the same questions."""
    most: int | None = None
    """Records at most; None: all that are held out."""
    batch_size: int = 32
    """Records that go through the model at once. Changes memory and speed, not the result."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_tokens", "most", "batch_size")
        yield from at_least(self, 0, "samples")
        yield from at_least(self, 0.0, "temperature")
        if self.judge is None and not self.samples and (self.max_tokens, self.temperature) != (64, 1.0):
            yield Problem("judge", None, "max_tokens and temperature are of answers, and there are none", "samples=8")

    def build(self) -> StageJob:
        from llmfactory.stage.examine import ExamineJob

        return ExamineJob(self)
