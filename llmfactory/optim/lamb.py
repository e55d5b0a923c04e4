"""LAMB (You et al. 2020, "Large batch optimization for deep learning", algorithm 2, with phi the identity).

    r = m^ / (sqrt(v^) + eps) + decay w,   w = w - lr (|w| / |r|) r

Norms are of whole tensors, wherever their pieces lie. Vectors (gains, biases) are updated as by Adam, as in the paper's experiments;
so is a tensor of which the weights or the update are all zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Lamb as LambSpec
from llmfactory.parallel.clip import norms
from llmfactory.parallel.weights import local


class Lamb(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: LambSpec) -> None:
        super().__init__(groups, spec)
        self.betas, self.eps = (spec.betas[0], spec.betas[1]), spec.eps

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        updates = [self._direction(weight) for weight in weights]
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        matrices = [number for number, weight in enumerate(weights) if weight.dim() >= 2]
        factors: list[float | Tensor] = [1.0] * len(weights)
        if matrices:
            lengths = norms([weights[number] for number in matrices]), norms([updates[number] for number in matrices])
            ratios = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
            for place, number in enumerate(matrices):
                factors[number] = ratios[place]
        for weight, update, factor in zip(weights, updates, factors, strict=True):
            local(weight).sub_(group["lr"] * factor * local(update))

    def _direction(self, weight: Tensor) -> Tensor:
        """m^ / (sqrt(v^) + eps)."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step, (first, second) = int(state["step"].item()), self.betas
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        direction: Tensor = (state["mean"] / (1 - first**step)) / ((state["square"] / (1 - second**step)).sqrt() + self.eps)
        return direction
