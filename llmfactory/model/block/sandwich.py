"""Sandwich wiring (Ding et al. 2021, CogView, section 2.4): x + norm'(f(norm(x))), for attention, then cross-attention where there
is, then feed-forward. The second norm bounds what a sub-layer adds to the residual stream. Of Gemma 2."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class SandwichBlock(Part):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> None:
        super().__init__()
        norm, dim = site.frame.norm, site.frame.dim
        self.attention_norm, self.attention, self.attention_out_norm = norm(dim), attention, norm(dim)
        self.cross = cross
        self.cross_norm = None if cross is None else norm(dim)
        self.cross_out_norm = None if cross is None else norm(dim)
        self.ffn_norm, self.ffn, self.ffn_out_norm = norm(dim), ffn, norm(dim)
        self.dropout = nn.Dropout(dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention_out_norm(self.attention(self.attention_norm(x_BTD), context)))
        if self.cross is not None and self.cross_norm is not None and self.cross_out_norm is not None:
            x_BTD = x_BTD + self.dropout(self.cross_out_norm(self.cross(self.cross_norm(x_BTD), context)))
        return x_BTD + self.dropout(self.ffn_out_norm(self.ffn(self.ffn_norm(x_BTD), context)))  # type: ignore[no-any-return]
