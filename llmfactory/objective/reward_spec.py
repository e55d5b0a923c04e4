"""Catalogue of objectives that train a reward model: one number for an answer, or for each step of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least
from llmfactory.objective.base_spec import ObjectiveSpec

if TYPE_CHECKING:
    from llmfactory.objective.objective import Objective


@dataclass(kw_only=True, slots=True)
class RewardSpec(ObjectiveSpec):
    """Base of the objectives of reward models."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent")
    answers: ClassVar[str] = "scalar"
    each_token: ClassVar[bool] = False
    """Whether it wants a number at every token (model/head=value) instead of one for each answer (model/head=reward)."""


@dataclass(kw_only=True, slots=True)
class BradleyTerry(RewardSpec):
    """Of two answers, the chosen one has the higher reward: the mean of -log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022,
    equation 1)."""

    kinds: ClassVar[tuple[str, ...]] = ("pair",)
    margin_scale: float = 0.0
    """The chosen answer must be better by this times the record's margin (Touvron et al. 2023, equation 2); 0: margins of records,
    and differences of their scores, do not matter. Records without one ask for none."""
    center: float = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around zero (Eisenstein et al. 2023, section 2); 0: only differences
    are learned."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0.0, "margin_scale", "center")

    def build(self) -> Objective:
        from llmfactory.objective.bradley_terry import BradleyTerryObjective

        return BradleyTerryObjective(self)


@dataclass(kw_only=True, slots=True)
class Ranking(RewardSpec):
    """All pairs of a ranking at once, each record weighted alike (Ouyang et al. 2022, equation 1 and section 3.5); answers with equal
    scores are no pair."""

    kinds: ClassVar[tuple[str, ...]] = ("ranking",)

    def build(self) -> Objective:
        from llmfactory.objective.ranking import RankingObjective

        return RankingObjective()


@dataclass(kw_only=True, slots=True)
class Regression(RewardSpec):
    """The reward of an answer is its score: the mean of (r - s)^2 over answers that have one."""

    kinds: ClassVar[tuple[str, ...]] = ("scored", "ranking")
    offset: float = 0.0
    """The reward is (score - offset) / scale: with the scores' mean and standard deviation, what a new head has to learn is small."""
    scale: float = 1.0
    """Of scores, in the files' own unit."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "scale", repair=1.0)

    def build(self) -> Objective:
        from llmfactory.objective.regression import RegressionObjective

        return RegressionObjective(self)


class StepLoss(Enum):
    """What a number at the end of a step is."""

    binary = "binary"
    """The logit of the step being right: binary cross-entropy (Lightman et al. 2023, appendix F)."""
    squared = "squared"
    """The step's score itself: squared error."""


@dataclass(kw_only=True, slots=True)
class Process(RewardSpec):
    """Judge a solution step by step, at the last token of each (Lightman et al. 2023): the mean over labelled steps."""

    kinds: ClassVar[tuple[str, ...]] = ("scored",)
    each_token: ClassVar[bool] = True
    loss: StepLoss = StepLoss.binary
    """What the number at the end of a step is, and so what is minimized."""
    threshold: float = 0.0
    """Steps with a higher score are right (PRM800K: 1 right, 0 neutral, -1 wrong; true counts 1 and false 0)."""

    def build(self) -> Objective:
        from llmfactory.objective.process import ProcessObjective

        return ProcessObjective(self)
