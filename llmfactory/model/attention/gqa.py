"""Multi-head attention with shared key/value heads (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023).

The forward counts heads from the width of its projections, never from the spec, so that it is the same code when the heads
are cut over a tensor-parallel group. Legend: H query heads, G key/value heads, D head width, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class GroupedQueryAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Gqa, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.layer, self.dropout = site.layer, spec.dropout
        self.std, self.out_std = frame.std, frame.out_std
        self.head_dim = spec.head_width(dim)
        # A bound method, not a submodule: the skeleton owns the position part, and with it the part's parameters.
        self.rotate: Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor]] = site.position.rotate
        kv_dim = (spec.n_kv_heads or spec.n_heads) * self.head_dim
        self.q = nn.Linear(dim, dim, bias=spec.bias)
        self.k = nn.Linear(dim, kv_dim, bias=spec.bias)
        self.v = nn.Linear(dim, kv_dim, bias=spec.bias)
        self.o = nn.Linear(dim, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("q", self.q, self.std, Layout.column),
            **declare_linear("k", self.k, self.std, Layout.column),
            **declare_linear("v", self.v, self.std, Layout.column),
            **declare_linear("o", self.o, self.out_std, Layout.row),
        }

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        q_BHTD = self._heads(self.q(x_BTM))
        k_BGTD = self._heads(self.k(x_BTM))
        v_BGTD = self._heads(self.v(x_BTM))
        q_BHTD, k_BGTD = self.rotate(q_BHTD, k_BGTD, context)
        k_BGSD, v_BGSD = (k_BGTD, v_BGTD) if context.state is None else context.state.append(self.layer, k_BGTD, v_BGTD)
        y_BHTD = attend(q_BHTD, k_BGSD, v_BGSD, context, self.dropout if self.training else 0.0)
        return self.o(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x_BTM: Tensor) -> Tensor:
        return x_BTM.view(*x_BTM.shape[:-1], -1, self.head_dim).transpose(1, 2)


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, context: Context, dropout: float = 0.0) -> Tensor:
    """`reference.attend` on PyTorch's fused kernels, with dropout of attention probabilities."""
    shared = q_BHTD.shape[1] != k_BGSD.shape[1]
    if context.mask.is_causal and context.bias is None and q_BHTD.shape[2] == k_BGSD.shape[2]:
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, dropout_p=dropout, is_causal=True, enable_gqa=shared)
    seen = context.mask.dense()
    if context.bias is not None:
        bias = context.bias.to(q_BHTD.dtype)
        seen = bias if seen is None else torch.where(seen, bias, float("-inf"))
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, attn_mask=seen, dropout_p=dropout, enable_gqa=shared)
