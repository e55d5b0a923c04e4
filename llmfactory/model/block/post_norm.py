"""Post-norm wiring (Vaswani et al. 2017, section 3.1): norm(x + f(x)), for attention, then cross-attention where there is, then
feed-forward. Of GPT-1, BERT and BART."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class PostNormBlock(Part):
    """[B, T, D] -> [B, T, D], normalized."""

    def __init__(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> None:
        super().__init__()
        norm, dim = site.frame.norm, site.frame.dim
        self.attention, self.attention_norm = attention, norm(dim)
        self.cross = cross
        self.cross_norm = None if cross is None else norm(dim)
        self.ffn, self.ffn_norm = ffn, norm(dim)
        self.dropout = nn.Dropout(dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, context)))
        if self.cross is not None and self.cross_norm is not None:
            x_BTD = self.cross_norm(x_BTD + self.dropout(self.cross(x_BTD, context)))
        return self.ffn_norm(x_BTD + self.dropout(self.ffn(x_BTD, context)))  # type: ignore[no-any-return]
