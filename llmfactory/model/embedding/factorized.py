"""One trained vector a token, narrower or wider than the model, and a linear map to its width (Lan et al. 2020, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.embedding.spec import Factorized
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.part import declare_linear


class FactorizedEmbedding(TokenTable):
    """ids [B, T] -> vectors [B, T, D] = table[ids] @ project.T; a tied head borrows the table [V, width]."""

    def __init__(self, spec: Factorized, vocab_size: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(vocab_size, spec.width))
        self.project = nn.Linear(spec.width, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        table = {"weight": Parameter(Normal(self.std), Layout.vocab)}
        return {**table, **declare_linear("project", self.project, self.std, Layout.replicated)}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return self.project(self.vectors(tokens_BT))  # type: ignore[no-any-return]
