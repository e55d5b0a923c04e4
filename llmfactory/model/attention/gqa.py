"""Multi-head attention with shared key/value heads (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023).

The forward counts heads from the width of its projections, never from the spec, so that it is the same code when the heads
are cut over a tensor-parallel group. Legend: H query heads, G key/value heads, D head width, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.kernel.attention import attend
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class GroupedQueryAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Gqa, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.layer, self.dropout = site.layer, spec.dropout
        self.scale, self.window, self.softcap = spec.scale, spec.window, spec.softcap
        self.std, self.value_std, self.out_std = frame.std, frame.branch_std, frame.out_std
        self.head_dim = spec.head_width(dim)
        # A bound method, not a submodule: the skeleton owns the position part, and with it the part's parameters.
        self.rotate: Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor]] = site.position.rotate
        q_dim, kv_dim = spec.n_heads * self.head_dim, (spec.n_kv_heads or spec.n_heads) * self.head_dim
        self.q = nn.Linear(dim, q_dim, bias=spec.qkv_biased)
        self.k = nn.Linear(dim, kv_dim, bias=spec.qkv_biased)
        self.v = nn.Linear(dim, kv_dim, bias=spec.qkv_biased)
        self.o = nn.Linear(q_dim, dim, bias=spec.bias)
        self.q_norm = spec.qk_norm.build(self.head_dim) if spec.qk_norm else nn.Identity()
        self.k_norm = spec.qk_norm.build(self.head_dim) if spec.qk_norm else nn.Identity()

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("q", self.q, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("k", self.k, self.std, Layout.column, self.head_dim, shared=True),
            **declare_linear("v", self.v, self.value_std, Layout.column, self.head_dim, shared=True),
            **declare_linear("o", self.o, self.out_std, Layout.row),
        }

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        q_BHTD = self.q_norm(split_heads(self.q(x_BTM), self.head_dim))
        k_BGTD = self.k_norm(split_heads(self.k(x_BTM), self.head_dim))
        v_BGTD = split_heads(self.v(x_BTM), self.head_dim)
        q_BHTD, k_BGTD = self.rotate(q_BHTD, k_BGTD, context)
        k_BGSD, v_BGSD = (k_BGTD, v_BGTD) if context.state is None else context.state.append(self.layer, k_BGTD, v_BGTD)
        y_BHTD = attend(
            q_BHTD,
            k_BGSD,
            v_BGSD,
            context.mask,
            context.bias,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            dropout=self.dropout if self.training else 0.0,
            kernel=self.kernel,
        )
        return self.o(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def split_heads(x_BTM: Tensor, head_dim: int) -> Tensor:
    """[B, T, heads * D] -> [B, heads, T, D]."""
    return x_BTM.view(*x_BTM.shape[:-1], -1, head_dim).transpose(1, 2)
