"""AdamW without a schedule (Defazio et al. 2024, "The road less scheduled", algorithm 1), after its authors' implementation.

    y = (1 - b1) z + b1 x,   g at y,   v = b2 v + (1 - b2) g^2,   u = g / (sqrt(v / (1 - b2^t)) + eps) + decay y
    z = z - lr u,   x = (1 - c) x + c z,   c = r^2 / (sum of r^2 so far),  r the largest lr so far

The model is trained at y, and what is used of it is x, a mean of all z: `ScheduleFreeAverage` puts that in the model's place
whenever it is measured, saved or handed on. Of the three, y stands in the model and z in the state; x follows from the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.optim.average.average import Average
from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import ScheduleFree as ScheduleFreeSpec
from llmfactory.parallel.weights import local

BASE = "base"
"""Name of z among a weight's state."""


class ScheduleFree(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: ScheduleFreeSpec) -> None:
        super().__init__(groups, spec)
        self.spec = spec

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        first, second = self.spec.betas
        for weight in weights:
            state, gradient = self.state[weight], weight.grad
            assert gradient is not None
            if not state:
                numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("step", "largest", "total")}
                state.update(numbers, square=torch.zeros_like(weight))
                state[BASE] = weight.detach().clone()
            lr, share = self._share(state, group["lr"])
            y, z, square, change = (local(one) for one in (weight, state[BASE], state["square"], gradient))
            square.mul_(second).addcmul_(change, change, value=1 - second)
            change.div_(square.div(1 - second ** state["step"].item()).sqrt_().add_(self.spec.eps))
            change.add_(y, alpha=group["weight_decay"])
            y.lerp_(z, share).add_(change, alpha=lr * (first * (1 - share) - 1))
            z.sub_(change, alpha=lr)

    @staticmethod
    def _share(state: dict[str, Any], lr: float) -> tuple[float, float]:
        """The learning rate, and c: how much the mean takes of the newest z."""
        state["step"] += 1
        state["largest"].clamp_min_(lr)
        newest = state["largest"].item() ** 2
        state["total"] += newest
        total = state["total"].item()
        return lr, newest / total if total else 0.0


class ScheduleFreeAverage(Average):
    """x, from what is trained and what the optimizer keeps."""

    def __init__(self, spec: ScheduleFreeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.optimizer: Optimizer | None = None

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().begin(model, optimizer)
        self.optimizer = optimizer

    def update(self, step: int) -> None:
        self.updates += 1

    def weight(self, name: str) -> Tensor | None:
        assert self.optimizer is not None
        parameter = self.parameters[name]
        base = self.optimizer.state.get(parameter, {}).get(BASE)
        return None if base is None else local(parameter).lerp(local(base), 1 - 1 / self.spec.betas[0])
