"""Catalogue of objectives that learn several tasks, the sources of a mixture, at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, between
from llmfactory.objective.base_spec import ObjectiveSpec

if TYPE_CHECKING:
    from llmfactory.objective.objective import Objective


@dataclass(kw_only=True, slots=True)
class Tilted(ObjectiveSpec):
    """Next tokens of several sources, those with the higher loss weighing more: 1 / tilt x log mean_k exp(tilt L_k) over the mean losses
    L_k of an optimizer step's sources (Li et al. 2021, equation 4). A second forward pass says what they are."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent", "multimodal")
    tilt: float = 1.0
    """Per nat. Towards 0 all sources count alike, whatever their size; large ones learn the worst one only."""
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the target (Szegedy et al. 2016, section 7)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "tilt", repair=1.0)
        yield from between(self, 0.0, 0.99, "label_smoothing")

    def build(self, sources: tuple[str, ...] = ()) -> Objective:
        """`sources`: names, in the order of the mixture; none: it is used as a measure, in which nothing is weighed."""
        from llmfactory.objective.tilted import TiltedObjective

        return TiltedObjective(self, sources)
