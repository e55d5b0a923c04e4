"""What our own optimizers share: a step is an update of each group's weights that have a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from llmfactory.optim.spec import OptimSpec


def without_closure(closure: Callable[[], Any] | None) -> None:
    """Raises TypeError where a step is to compute its gradients."""
    if closure is not None:
        raise TypeError("the gradients are there before the step: no closure")


class StepOptimizer(Optimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: OptimSpec) -> None:
        super().__init__(groups, {"lr": spec.lr, "weight_decay": spec.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        without_closure(closure)
        for group in self.param_groups:
            if weights := [weight for weight in group["params"] if weight.grad is not None]:
                self.update(weights, group)

    @abstractmethod
    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Change these weights of a group, one at least, in place."""
