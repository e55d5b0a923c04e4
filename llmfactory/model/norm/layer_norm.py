"""Layer normalization (Ba et al. 2016, equation 4): y = (x - mean) / sqrt(var + eps) * gain + bias.

Half-precision input is normalized in float32 and cast back once, after gain and bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Parameter
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.part import Part


class LayerNormalization(Part):
    """[..., D] -> [..., D]."""

    def __init__(self, spec: LayerNorm, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def declare(self) -> dict[str, Parameter]:
        declared = {"weight": Parameter(Constant(1.0), decay=False)}
        if self.bias is not None:
            declared["bias"] = Parameter(Constant(0.0), decay=False)
        return declared

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), bias, self.eps).to(x.dtype)
