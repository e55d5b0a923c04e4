"""Layer normalization (Ba et al. 2016, equation 4): y = (x - mean) / sqrt(var + eps) * gain + bias.

Half-precision input is normalized in float32 and cast back once, after gain and bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Parameter
from llmfactory.kernel.norm import layer_norm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.part import Part


class LayerNormalization(Part):
    """[..., D] -> [..., D]."""

    def __init__(self, spec: LayerNorm, dim: int) -> None:
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(dim)) if spec.gain else None
        self.bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def declare(self) -> dict[str, Parameter]:
        gain = {} if self.weight is None else {"weight": Parameter(Constant(1.0), decay=False)}
        return gain if self.bias is None else {**gain, "bias": Parameter(Constant(0.0), decay=False)}

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, self.kernel)
