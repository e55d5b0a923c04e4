"""Catalogue of training objectives (config group stage/objective)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, between

if TYPE_CHECKING:
    from llmfactory.objective.objective import Objective


@dataclass(kw_only=True, slots=True)
class ObjectiveSpec(Spec):
    """Base of the objectives."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent")
    """Kinds of models (`ModelSpec.graph`) that it trains."""

    def build(self) -> Objective:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/objective")


@dataclass(kw_only=True, slots=True)
class Causal(ObjectiveSpec):
    """Predict each next token: the mean over targets of -log p(label) (Bengio et al. 2003)."""

    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target (Szegedy et al. 2016, section 7)."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 0.99, "label_smoothing")

    def build(self) -> Objective:
        from llmfactory.objective.causal import CausalObjective

        return CausalObjective(self)
