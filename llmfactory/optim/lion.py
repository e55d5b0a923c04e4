"""Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2).

    u = sign(b1 m + (1 - b1) g),   w = w - lr (u + decay w),   m = b2 m + (1 - b2) g

Everything is elementwise, so a piece of a weight is updated as the whole is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Lion as LionSpec


class Lion(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: LionSpec) -> None:
        super().__init__(groups, spec)
        self.betas = spec.betas[0], spec.betas[1]

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        shown, kept = self.betas
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["mean"] = torch.zeros_like(weight)
        means = [self.state[weight]["mean"] for weight in weights]
        updates = torch._foreach_lerp(gradients, means, shown)
        torch._foreach_sign_(updates)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1.0 - kept)
