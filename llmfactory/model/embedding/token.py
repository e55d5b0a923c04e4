"""One trained vector a token, times a constant. A tied head borrows the vectors without it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.embedding.table import TokenTable


class TokenEmbedding(TokenTable):
    """ids [B, T] -> vectors [B, T, D]."""

    def __init__(self, vocab_size: int, dim: int, std: float, scale: float = 1.0) -> None:
        super().__init__()
        self.std, self.scale = std, scale
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), Layout.vocab)}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self.vectors(tokens_BT)
        return x_BTD if self.scale == 1 else x_BTD * self.scale
