"""Catalogue of the ways in which models are merged.    llmfactory stage=merge stage/method=ties"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.stage.method.method import Method


@dataclass(kw_only=True, slots=True)
class MethodSpec(Spec):
    """Base of the ways."""

    on_init: ClassVar[bool] = True
    """It puts what models have learned on top of `init`, which has no weight of its own."""

    def against(self, models: Sequence[str], weights: Mapping[str, float]) -> Iterator[Problem]:
        """What is wrong with the models that it is to merge."""
        if self.on_init and "init" in weights:
            reason = "what the others have learned is put on top of init, so that it has no weight"
            yield Problem("weights", dict(weights), reason, "weights={}")

    def build(self, seed: int) -> Method:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/method")


@dataclass(kw_only=True, slots=True)
class Linear(MethodSpec):
    """The weighted mean of all models, that of `init` among them (Wortsman et al. 2022)."""

    on_init: ClassVar[bool] = False
    normalize: bool = True
    """Divide by the sum of the weights; false: the weighted sum."""

    def against(self, models: Sequence[str], weights: Mapping[str, float]) -> Iterator[Problem]:
        if self.normalize and sum(weights.get(name, 1.0) for name in ("init", *models)) == 0:
            yield Problem("weights", dict(weights), "add up to 0, which nothing can be divided by", "weights={}")

    def build(self, seed: int) -> Method:
        from llmfactory.stage.method.linear import LinearMethod

        return LinearMethod(self)


@dataclass(kw_only=True, slots=True)
class Slerp(MethodSpec):
    """Between the model of `init` and one other, along the arc on a sphere, tensor by tensor (Shoemake 1985)."""

    on_init: ClassVar[bool] = False
    t: float = 0.5
    """How far on the way: 0 is the model of `init`, 1 the other."""

    def problems(self) -> Iterator[Problem]:
        if not 0.0 <= self.t <= 1.0:
            yield Problem("t", self.t, "must lie between 0.0 and 1.0", "t=0.5")

    def against(self, models: Sequence[str], weights: Mapping[str, float]) -> Iterator[Problem]:
        if len(models) > 1:
            reason = f"there is an arc from init to one other model, not to {len(models)}"
            yield Problem("method", "slerp", reason, "stage/method=linear")
        if weights:
            yield Problem("weights", dict(weights), "how far to go on the arc is stage.method.t", "weights={}")

    def build(self, seed: int) -> Method:
        from llmfactory.stage.method.slerp import SlerpMethod

        return SlerpMethod(self)


@dataclass(kw_only=True, slots=True)
class TaskArithmetic(MethodSpec):
    """On top of `init` the weighted sum of what each model has learned (Ilharco et al. 2023); a negative weight unlearns."""

    scale: float = 1.0
    """Factor of the sum, lambda."""

    def build(self, seed: int) -> Method:
        from llmfactory.stage.method.task_arithmetic import TaskArithmeticMethod

        return TaskArithmeticMethod(self)


@dataclass(kw_only=True, slots=True)
class Ties(MethodSpec):
    """On top of `init` the mean of what models have learned, without small changes, of those models that agree with the sign that has
    more behind it (Yadav et al. 2023)."""

    density: float = 0.2
    """Share of the changes of each tensor that are kept, the largest ones."""
    scale: float = 1.0
    """Factor of the mean, lambda."""

    def problems(self) -> Iterator[Problem]:
        if not 0.0 < self.density <= 1.0:
            yield Problem("density", self.density, "must lie above 0.0 and be at most 1.0", "density=0.2")

    def build(self, seed: int) -> Method:
        from llmfactory.stage.method.ties import TiesMethod

        return TiesMethod(self)


class Then(Enum):
    """What is done with the changes that are left."""

    linear = "their weighted sum"
    ties = "their mean over the models that agree with the sign that has more behind it"


@dataclass(kw_only=True, slots=True)
class Dare(MethodSpec):
    """On top of `init` what models have learned, most of it dropped at random and the rest made larger instead (Yu et al. 2024)."""

    drop: float = 0.9
    """Share of the changes that is dropped, p; the others are multiplied by 1 / (1 - p)."""
    then: Then = Then.linear
    """What is done with the changes that are left."""
    scale: float = 1.0
    """Factor of what is added to `init`, lambda."""

    def problems(self) -> Iterator[Problem]:
        if not 0.0 <= self.drop < 1.0:
            yield Problem("drop", self.drop, "must lie between 0.0 and below 1.0", "drop=0.9")

    def build(self, seed: int) -> Method:
        from llmfactory.stage.method.dare import DareMethod

        return DareMethod(self, seed)
