"""One trained vector a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.part import Part


class TokenEmbedding(Part):
    """ids [B, T] -> vectors [B, T, D]."""

    def __init__(self, vocab_size: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), Layout.vocab)}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return F.embedding(tokens_BT, self.weight)
