"""Catalogue of objectives that learn from answers that are compared or labelled, without a reward model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.objective.base_spec import ObjectiveSpec

if TYPE_CHECKING:
    from llmfactory.objective.answers import AnswersObjective


class Reference(Enum):
    """The model that log-probabilities are compared with: the one that training starts from."""

    none = "there is none: every answer is as likely under it as any other"
    base = "the model without its adapters, where only these are trained: no second copy of the weights"
    copy = "a frozen copy of the first weights beside the model"
    precomputed = "the first weights, asked once for every answer before training; kept in a file beside the run"


class Compares(Enum):
    """Whether an objective compares with a reference."""

    always = "it has no meaning without one"
    usually = "it does, and has a meaning without one"
    seldom = "it does not, and has a meaning with one"
    never = "it has no place for one"


@dataclass(kw_only=True, slots=True)
class PreferenceSpec(ObjectiveSpec):
    """Base of the objectives that learn from preferences."""

    kinds: ClassVar[tuple[str, ...]] = ("pair",)
    compares: ClassVar[Compares] = Compares.never

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        """`reference`: where the reference's log-probabilities come from."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/objective")


@dataclass(kw_only=True, slots=True)
class Dpo(PreferenceSpec):
    """Direct preference optimization (Rafailov et al. 2023, equation 7): -log sigmoid(beta (chosen - rejected log-ratio))."""

    compares: ClassVar[Compares] = Compares.usually
    beta: float = 0.1
    """How much a nat of log-ratio is worth: high keeps the model near the reference."""
    label_smoothing: float = 0.0
    """Share of the pairs that are taken to be the wrong way round (cDPO, Mitchell 2023)."""
    robust: bool = False
    """Divide out what such pairs add on average, so that the loss is unbiased (Chowdhury et al. 2024, equation 12)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=0.1)
        yield from between(self, 0.0, 0.49, "label_smoothing")
        if self.robust and self.label_smoothing == 0:
            reason = "there is nothing to divide out as long as label_smoothing=0"
            yield Problem("robust", self.robust, reason, "robust=false")

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.dpo import DpoObjective

        return DpoObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Ipo(PreferenceSpec):
    """Identity preference optimization (Azar et al. 2023, equation 17): (log-ratio of the pair - 1 / (2 beta))^2."""

    compares: ClassVar[Compares] = Compares.usually
    beta: float = 0.1
    """Strength of the regularization (the paper's tau), per nat."""
    average: bool = True
    """Divide the log-ratio of an answer by its tokens, as the authors' own results do; false: the sum, as the paper writes."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=0.1)

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.ipo import IpoObjective

        return IpoObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Slic(PreferenceSpec):
    """Sequence likelihood calibration (Zhao et al. 2023, equation 3): max(0, margin - beta (chosen - rejected)), a hinge."""

    compares: ClassVar[Compares] = Compares.seldom
    beta: float = 1.0
    """Factor of the difference, per nat."""
    margin: float = 1.0
    """Difference, times beta, from which on a pair is good enough."""
    nll: float = 0.0
    """Weight of -log p of the chosen answers, per token, which keeps the model a writer of them."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=1.0)
        yield from above(self, 0.0, "margin", repair=1.0)
        yield from at_least(self, 0.0, "nll")

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.slic import SlicObjective

        return SlicObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Cpo(PreferenceSpec):
    """Contrastive preference optimization (Xu et al. 2024, equation 5): DPO under a uniform reference, and the chosen answers' NLL."""

    beta: float = 0.1
    """How much a nat of difference is worth."""
    nll: float = 1.0
    """Weight of -log p of the chosen answers, per token."""
    label_smoothing: float = 0.0
    """Share of the pairs that are taken to be the wrong way round."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=0.1)
        yield from at_least(self, 0.0, "nll")
        yield from between(self, 0.0, 0.49, "label_smoothing")

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.cpo import CpoObjective

        return CpoObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Simpo(PreferenceSpec):
    """Simple preference optimization (Meng et al. 2024, equation 6): mean log-probabilities of tokens, a margin, no reference."""

    beta: float = 2.0
    """How much a nat per token is worth."""
    gamma: float = 1.0
    """Margin by which the chosen answer is to be better, times beta."""
    label_smoothing: float = 0.0
    """Share of the pairs that are taken to be the wrong way round."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=2.0)
        yield from at_least(self, 0.0, "gamma")
        yield from between(self, 0.0, 0.49, "label_smoothing")

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.simpo import SimpoObjective

        return SimpoObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Orpo(PreferenceSpec):
    """Odds ratio preference optimization (Hong et al. 2024, equation 6): the chosen answers' NLL, and the odds of the pair."""

    beta: float = 0.1
    """Weight of the log-odds term (the paper's lambda)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=0.1)

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.orpo import OrpoObjective

        return OrpoObjective(self, reference)


@dataclass(kw_only=True, slots=True)
class Rrhf(PreferenceSpec):
    """Rank responses to align (Yuan et al. 2023, equations 2 to 4): a hinge between answers in the wrong order, and the best one's NLL."""

    kinds: ClassVar[tuple[str, ...]] = ("ranking",)
    weight: float = 1.0
    """Weight of the hinges."""
    length_power: float = 1.0
    """The log-probability of an answer is divided by its tokens to this power; 1: the mean."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "weight", repair=1.0)
        yield from at_least(self, 0.0, "length_power")

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.rrhf import RrhfObjective

        return RrhfObjective(self)


@dataclass(kw_only=True, slots=True)
class Kto(PreferenceSpec):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, equation 8): answers labelled wanted or not, each judged by whether its
    log-ratio lies above that of the model's answers in general."""

    kinds: ClassVar[tuple[str, ...]] = ("judged",)
    compares: ClassVar[Compares] = Compares.always
    beta: float = 0.1
    """How much a nat of log-ratio is worth."""
    wanted: float = 1.0
    """Weight of the answers that are wanted (the paper's lambda_D)."""
    unwanted: float = 1.0
    """Weight of the answers that are not (lambda_U)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "beta", repair=0.1)
        yield from above(self, 0.0, "wanted", repair=1.0)
        yield from above(self, 0.0, "unwanted", repair=1.0)

    def build(self, reference: Reference = Reference.none) -> AnswersObjective:
        from llmfactory.objective.kto import KtoObjective

        return KtoObjective(self, reference)
