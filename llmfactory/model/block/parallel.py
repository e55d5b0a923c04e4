"""Parallel wiring (Wang and Komatsuzaki 2021, GPT-J; Chowdhery et al. 2022, section 2): x + attention(norm(x)) + ffn(norm'(x)).

Attention and feed-forward read the same input, so that they can run side by side. norm' is norm itself in GPT-J, PaLM, Phi
and Falcon 7B, and a norm of its own in GPT-NeoX and Falcon 40B.
"""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.block.spec import Parallel
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class ParallelBlock(Part):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, spec: Parallel, site: Site, attention: Part, ffn: Part, dropout: float) -> None:
        super().__init__()
        norm, dim = site.frame.norm, site.frame.dim
        self.attention_norm, self.attention = norm(dim), attention
        self.ffn_norm = None if spec.shared_norm else norm(dim)
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        normed_BTD = self.attention_norm(x_BTD)
        attended_BTD = self.attention(normed_BTD, context)
        fed_BTD = self.ffn(normed_BTD if self.ffn_norm is None else self.ffn_norm(x_BTD), context)
        return x_BTD + self.dropout(attended_BTD) + self.dropout(fed_BTD)  # type: ignore[no-any-return]
