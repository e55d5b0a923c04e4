"""Catalogue page of low-rank adaptation with a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.peft.base_spec import DEFAULT
from llmfactory.peft.lora_spec import LowRankSpec

if TYPE_CHECKING:
    from torch import Tensor

    from llmfactory.model.skeleton import Skeleton


@dataclass(kw_only=True, slots=True)
class Adalora(LowRankSpec):
    """Low-rank adaptation whose rank goes to the maps that need it (Zhang et al. 2023): the change is s P diag(e) Q, and triplets of
    little importance lose their e until `target_rank` of them are left for each map, on average."""

    target_rank: int = 8
    """Triplets that are left at the end, on average over the maps; `rank` is what each begins with."""
    total_steps: int = 500
    """Optimizer steps in which all is done; the run has at least as many."""
    first_steps: int = 0
    """Steps at the beginning in which all triplets stay."""
    last_steps: int = 0
    """Steps at the end of `total_steps` in which what has been chosen is trained."""
    interval: int = 1
    """Steps from one choice to the next."""
    smoothing: float = 0.85
    """Decay of the running means of a number's sensitivity and of its uncertainty."""
    orthogonality: float = 0.5
    """Weight of the term that keeps the columns of P and the rows of Q orthonormal."""

    def problems(self) -> Iterator[Problem]:
        yield from LowRankSpec.problems(self)
        yield from at_least(self, 1, "target_rank", "total_steps", "interval")
        yield from at_least(self, 0, "first_steps", "last_steps", "orthogonality")
        yield from between(self, 0.0, 0.999, "smoothing")
        if self.target_rank > self.rank:
            reason = f"more than each map begins with, rank={self.rank}"
            yield Problem("target_rank", self.target_rank, reason, f"target_rank={max(1, self.rank // 2)}")
        if self.first_steps + self.last_steps >= self.total_steps:
            reason = f"first_steps={self.first_steps} and last_steps={self.last_steps} leave no step to choose in"
            yield Problem("total_steps", self.total_steps, reason, f"total_steps={self.first_steps + self.last_steps + 1}")

    def budget(self, step: int, maps: int) -> int:
        """Triplets of all maps together after a step, counted from 0 (equation 12)."""
        first, target = self.rank * maps, self.target_rank * maps
        if step <= self.first_steps:
            return first
        if step > self.total_steps - self.last_steps:
            return target
        left = 1 - (step - self.first_steps) / (self.total_steps - self.last_steps - self.first_steps)
        return int((first - target) * left**3 + target)

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.adalora import adapt

        adapt(self, model, name)

    def stepped(self, model: Skeleton, step: int, taken: Tensor) -> None:
        from llmfactory.peft.adalora import stepped

        stepped(self, model, step, taken)
