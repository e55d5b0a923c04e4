from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Parameter
from llmfactory.model.part import Part


class ScaleNormalization(Part):
    """[..., D] -> [..., D]."""

    def __init__(self, spec, dim: int) -> None:
        super().__init__()
        self.eps, self.dim = spec.eps, dim
        self.gain = nn.Parameter(torch.ones(1))

    def declare(self) -> dict[str, Parameter]:
        return {"gain": Parameter(Constant(self.dim**0.5), decay=False)}

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp_min(self.eps) * self.gain
