"""TIES: trim, elect the sign, mean of those that agree (Yadav et al. 2023, algorithm 1), tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from llmfactory.stage.method.method import Method, agreeing_mean, learned
from llmfactory.stage.method.spec import Ties


def trimmed(change: Tensor, density: float) -> Tensor:
    """The largest changes, that share of them, of equal ones all; 0 in the place of the others."""
    if change.numel() == 0:
        return change
    kept = max(1, math.ceil(density * change.numel()))
    sizes = change.abs().flatten()
    least = sizes.kthvalue(sizes.numel() - kept + 1).values
    return change * (change.abs() >= least)


class TiesMethod(Method):
    def __init__(self, spec: Ties) -> None:
        self.spec = spec

    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        changes = {model: trimmed(change, self.spec.density) for model, change in learned(base, others).items()}
        return base + self.spec.scale * agreeing_mean(changes, weights)
