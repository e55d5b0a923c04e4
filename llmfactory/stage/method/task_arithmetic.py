"""Task arithmetic: theta = theta_init + lambda sum_i w_i (theta_i - theta_init) (Ilharco et al. 2023, section 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmfactory.stage.method.method import Method, learned, weighted_sum
from llmfactory.stage.method.spec import TaskArithmetic


class TaskArithmeticMethod(Method):
    def __init__(self, spec: TaskArithmetic) -> None:
        self.scale = spec.scale

    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        return base + self.scale * weighted_sum(learned(base, others), weights)
