"""Catalogue of optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.optim.schedule.spec import ScheduleSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(kw_only=True, slots=True)
class OptimSpec(Spec):
    """Base of the optimizers."""

    lr: float
    """Peak learning rate; the schedule multiplies it."""
    schedule: ScheduleSpec
    weight_decay: float = 0.1
    """Decay of matrices; norms, biases and what parts declare as such are never decayed."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; larger ones are scaled down to it. None: no clipping (the norm is still reported)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "lr", repair=3e-4)
        yield from at_least(self, 0.0, "weight_decay")
        yield from above(self, 0.0, "clip_norm", repair=1.0)

    def state_copies(self) -> int:
        """How many numbers the optimizer keeps for each weight."""
        return 2

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        """The optimizer over parameter groups made by `optim/groups.py`; their lr is set before every step."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of optim")


@dataclass(kw_only=True, slots=True)
class Adamw(OptimSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), PyTorch's fused implementation."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from above(self, 0.0, "eps", repair=1e-8)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            yield Problem("betas", self.betas, "must be two numbers in [0, 1)", "betas=[0.9,0.95]")

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.adamw import adamw

        return adamw(self, groups)


@dataclass(kw_only=True, slots=True)
class Sgd(OptimSpec):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013); weight decay is added to the gradient, as in PyTorch."""

    momentum: float = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from between(self, 0.0, 0.999, "momentum")
        if self.nesterov and self.momentum == 0:
            yield Problem("nesterov", True, "needs momentum", "momentum=0.9")

    def state_copies(self) -> int:
        return 1 if self.momentum else 0

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.sgd import sgd

        return sgd(self, groups)
