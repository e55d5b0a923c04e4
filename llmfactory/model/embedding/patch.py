"""Pictures as sequences of vectors (Dosovitskiy et al. 2021, equation 1): a linear map of each square, in reading order.

A square's pixels are read channel by channel, row by row, as a convolution with the square's size as its stride does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.part import Part, declare_linear


class PatchEmbedding(Part):
    """pictures [N, C, Y, X] -> vectors [N, P, D], the class vector first where there is one."""

    def __init__(self, spec: Patch, dim: int, std: float) -> None:
        super().__init__()
        self.std, self.size, self.channels = std, spec.image_size, spec.channels
        self.squares = nn.Conv2d(spec.channels, dim, spec.patch_size, stride=spec.patch_size, bias=spec.bias)
        self.first = nn.Parameter(torch.zeros(dim)) if spec.class_token else None

    def declare(self) -> dict[str, Parameter]:
        first = {} if self.first is None else {"first": Parameter(Normal(self.std), decay=False)}
        return {**first, **declare_linear("squares", self.squares, self.std, Layout.replicated)}

    def forward(self, images_NCYX: Tensor) -> Tensor:
        if images_NCYX.shape[1:] != (self.channels, self.size, self.size):
            shape = " x ".join(map(str, images_NCYX.shape[1:]))
            raise UserError(f"a picture of {shape} values, but the model reads {self.channels} x {self.size} x {self.size}")
        x_NPD: Tensor = self.squares(images_NCYX).flatten(2).transpose(1, 2)
        if self.first is None:
            return x_NPD
        return torch.cat((self.first.to(x_NPD.dtype).expand(x_NPD.shape[0], 1, -1), x_NPD), 1)
