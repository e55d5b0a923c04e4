"""No normalization: the residual stream as it is."""

from __future__ import annotations

from torch import Tensor

from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part


class NoNorm(Part):
    """x -> x."""

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x: Tensor) -> Tensor:
        return x
