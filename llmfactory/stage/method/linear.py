"""The weighted mean: theta = sum_i w_i theta_i / sum_i w_i (Wortsman et al. 2022, section 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmfactory.stage.method.method import Method, weighted_sum
from llmfactory.stage.method.spec import Linear


class LinearMethod(Method):
    def __init__(self, spec: Linear) -> None:
        self.normalize = spec.normalize

    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        total = weighted_sum({"init": base, **others}, weights)
        return total / sum(weights.values()) if self.normalize else total
