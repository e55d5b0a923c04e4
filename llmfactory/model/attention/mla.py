"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1, equations 9 to 19).

Keys and values of all heads are made of one short vector c of each token, and one rotated key is common to all heads. A decoding
state keeps these two only. Where there are fewer queries than keys, the matrix that makes keys of c is applied to the queries
and the one that makes values to the result (the paper's "absorbed" form), so that keys and values of earlier tokens are never
made again: that is attention with one key head, c and the rotated key side by side, and c as the value.

Legend: H heads, T queries, S keys, N width that is not rotated, R rotated width, D = N + R, V width of values, C of c.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.kernel.attention import attend
from llmfactory.kernel.linear import matrix_of
from llmfactory.model.attention.gqa import split_heads
from llmfactory.model.attention.spec import Mla
from llmfactory.model.frame import Site
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.part import Part, declare_linear


class LatentAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Mla, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.layer, self.dropout = site.layer, spec.dropout
        self.std, self.out_std = frame.std, frame.out_std
        self.rank, self.plain, self.rotated, self.v_width = (
            spec.kv_lora_rank,
            spec.qk_nope_head_dim,
            spec.qk_rope_head_dim,
            spec.v_head_dim,
        )
        self.scale = (self.plain + self.rotated) ** -0.5 if spec.scale is None else spec.scale
        # A bound method, not a submodule: the skeleton owns the position part, and with it the part's parameters.
        self.rotate: Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor]] = site.position.rotate
        q_width, norm = spec.n_heads * (self.plain + self.rotated), RmsNorm(eps=spec.eps)
        if spec.q_lora_rank is None:
            self.q_down, self.q_norm = None, None
        else:
            self.q_down, self.q_norm = nn.Linear(dim, spec.q_lora_rank, bias=spec.bias), norm.build(spec.q_lora_rank)
        self.q = nn.Linear(spec.q_lora_rank or dim, q_width, bias=False)
        self.kv_down = nn.Linear(dim, self.rank + self.rotated, bias=spec.bias)
        self.kv_norm = norm.build(self.rank)
        self.kv = nn.Linear(self.rank, spec.n_heads * (self.plain + self.v_width), bias=False)
        self.o = nn.Linear(spec.n_heads * self.v_width, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        down = {} if self.q_down is None else declare_linear("q_down", self.q_down, self.std, Layout.replicated)
        return {
            **down,
            **declare_linear("q", self.q, self.std, Layout.column, self.plain + self.rotated),
            **declare_linear("kv_down", self.kv_down, self.std, Layout.replicated),
            **declare_linear("kv", self.kv, self.std, Layout.column, self.plain + self.v_width),
            **declare_linear("o", self.o, self.out_std, Layout.row),
        }

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        short_BTC = x_BTM if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x_BTM))
        q_BHTD = split_heads(self.q(short_BTC), self.plain + self.rotated)
        q_BHTN, q_BHTR = torch.split(q_BHTD, [self.plain, self.rotated], -1)
        c_BTC, k_BTR = torch.split(self.kv_down(x_BTM), [self.rank, self.rotated], -1)
        q_BHTR, k_B1TR = self.rotate(q_BHTR, k_BTR[:, None], context)
        c_B1SC, k_B1SR = self.kv_norm(c_BTC)[:, None], k_B1TR
        if context.state is not None:
            c_B1SC, k_B1SR = context.state.append(self.layer, c_B1SC, k_B1SR)
        form = self._absorbed if x_BTM.shape[1] < c_B1SC.shape[2] else self._expanded
        y_BHTV = form(q_BHTN, q_BHTR, c_B1SC, k_B1SR, context)
        return self.o(y_BHTV.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _expanded(self, q_BHTN: Tensor, q_BHTR: Tensor, c_B1SC: Tensor, k_B1SR: Tensor, context: Context) -> Tensor:
        """Keys and values of every head are made of c."""
        both_BHSE = split_heads(self.kv(c_B1SC[:, 0]), self.plain + self.v_width)
        k_BHSN, v_BHSV = torch.split(both_BHSE, [self.plain, self.v_width], -1)
        k_BHSD = torch.cat((k_BHSN, k_B1SR.expand(-1, k_BHSN.shape[1], -1, -1)), -1)
        return self._attend(torch.cat((q_BHTN, q_BHTR), -1), k_BHSD, v_BHSV, context)

    def _absorbed(self, q_BHTN: Tensor, q_BHTR: Tensor, c_B1SC: Tensor, k_B1SR: Tensor, context: Context) -> Tensor:
        """Queries are brought to the width of c, and results from there to that of values."""
        both_HEC = matrix_of(self.kv).view(-1, self.plain + self.v_width, self.rank)
        to_keys_HNC, to_values_HVC = torch.split(both_HEC, [self.plain, self.v_width], 1)
        q_BHTD = torch.cat((q_BHTN @ to_keys_HNC, q_BHTR), -1)
        y_BHTC = self._attend(q_BHTD, torch.cat((c_B1SC, k_B1SR), -1), c_B1SC, context)
        return torch.matmul(y_BHTC, to_values_HVC.transpose(1, 2))

    def _attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, context: Context) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return attend(q_BHTD, k_BGSD, v_BGSE, context.mask, context.bias, scale=self.scale, dropout=dropout, kernel=self.kernel)
