"""Root mean square normalization (Zhang and Sennrich 2019, equation 4): y = x / sqrt(mean(x^2) + eps) * gain.

The gain is offset + weight: with an offset of one, weights are what a gain differs from one by (Gemma Team 2024).
Half-precision input is normalized in float32 and cast back once, after the gain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Parameter
from llmfactory.kernel.norm import rms_norm
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.part import Part


class RootMeanSquareNorm(Part):
    """[..., D] -> [..., D]."""

    def __init__(self, spec: RmsNorm, dim: int) -> None:
        super().__init__()
        self.eps, self.offset = spec.eps, spec.offset
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - spec.offset))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Constant(1.0 - self.offset), decay=False)}

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.offset, self.kernel)
