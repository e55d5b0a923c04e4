"""Attention from a decoder's tokens to an encoder's output (Vaswani et al. 2017, section 3.2.3).

Queries come from the decoder, keys and values from `context.memory`. With a decoding state they are computed in the first
call and kept, so that later calls need no memory. Legend: H heads, D head width, T queries, M tokens of the encoder.
"""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.kernel.attention import attend
from llmfactory.model.attention.gqa import split_heads
from llmfactory.model.attention.spec import Cross
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class CrossAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Cross, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.slot = f"{site.slot}.cross"
        self.scale, self.dropout = spec.scale, spec.dropout
        self.std, self.out_std = frame.std, frame.out_std
        self.head_dim = spec.head_width(dim)
        width, memory_dim = spec.n_heads * self.head_dim, frame.memory_dim or dim
        self.q = nn.Linear(dim, width, bias=spec.qkv_biased)
        self.k = nn.Linear(memory_dim, width, bias=spec.qkv_biased)
        self.v = nn.Linear(memory_dim, width, bias=spec.qkv_biased)
        self.o = nn.Linear(width, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("q", self.q, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("k", self.k, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("v", self.v, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("o", self.o, self.out_std, Layout.row),
        }

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        assert context.memory_mask is not None, "the skeleton sets it"
        q_BHTD = split_heads(self.q(x_BTM), self.head_dim)
        k_BHMD, v_BHMD = self._of_memory(context)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD, k_BHMD, v_BHMD, context.memory_mask, scale=self.scale, dropout=dropout, kernel=self.kernel)
        return self.o(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _of_memory(self, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values: of the memory where the context brings one, else those of an earlier call."""
        if context.memory is None:
            kept = None if context.state is None else context.state.read(self.slot)
            assert kept is not None, "the first call brings the memory"
            return kept[0], kept[1]
        k_BHMD = split_heads(self.k(context.memory), self.head_dim)
        v_BHMD = split_heads(self.v(context.memory), self.head_dim)
        if context.state is not None:
            context.state.write(self.slot, (k_BHMD, v_BHMD))
        return k_BHMD, v_BHMD
