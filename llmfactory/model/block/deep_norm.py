"""DeepNorm (Wang et al. 2022, equation 4): norm(alpha x + f(x)), for attention, then feed-forward.

alpha grows with the depth, and the matrices that f grows with (values, output, feed-forward) start smaller by the factor
beta, so that a post-norm stack of hundreds of layers trains. `spec.DeepNorm` computes both.
"""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.block.spec import DeepNorm
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class DeepNormBlock(Part):
    """[B, T, D] -> [B, T, D], normalized."""

    def __init__(self, spec: DeepNorm, site: Site, attention: Part, ffn: Part, dropout: float) -> None:
        super().__init__()
        norm, dim = site.frame.norm, site.frame.dim
        self.alpha = spec.alpha(site.frame.n_layers)
        self.attention, self.attention_norm = attention, norm(dim)
        self.ffn, self.ffn_norm = ffn, norm(dim)
        self.dropout = nn.Dropout(dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = self.attention_norm(self.alpha * x_BTD + self.dropout(self.attention(x_BTD, context)))
        return self.ffn_norm(self.alpha * x_BTD + self.dropout(self.ffn(x_BTD, context)))  # type: ignore[no-any-return]
