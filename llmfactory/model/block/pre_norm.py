"""Pre-norm wiring (Xiong et al. 2020): x + f(norm(x)), for attention, then for feed-forward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part


class PreNormBlock(Part):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, attention: Part, ffn: Part, norm: Callable[[], Part], dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(), attention
        self.ffn_norm, self.ffn = norm(), ffn
        self.dropout = nn.Dropout(dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), context))
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))  # type: ignore[no-any-return]
