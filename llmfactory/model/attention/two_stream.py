"""Attention of XLNet (Yang et al. 2019, sections 2.3 and 2.5; appendix A.2).

With u, w, z trained vectors of each head, the score of query i for key j is

    (q_i + u) k_j + (q_i + w) W_r R_(i-j) + (q_i + z) s_ij,

over sqrt(D), with R the waves of the distance (`context.relative`) and s_ij one of two trained vectors, which say whether i and
j are of the same kind of text (`context.types`).

Under a `StreamsMask` the input holds two streams of the same T tokens one behind the other: the content stream, of which keys
and values are made, and the query stream, which knows nothing of its tokens but their places. So any wiring of blocks serves both.

Legend: H heads, D head width, T tokens, Q queries (T, or 2 T of both streams), S keys, L distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.kernel.attention import attend
from llmfactory.model.attention.gqa import split_heads
from llmfactory.model.attention.relative import by_distance, by_place
from llmfactory.model.attention.spec import TwoStream
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear

BIASES = ("content_bias", "distance_bias", "segment_bias", "same_segment", "other_segment")


class TwoStreamAttention(Part):
    """[B, Q, dim] -> [B, Q, dim]."""

    content_bias: nn.Parameter
    distance_bias: nn.Parameter
    segment_bias: nn.Parameter
    same_segment: nn.Parameter
    other_segment: nn.Parameter

    def __init__(self, spec: TwoStream, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.layer, self.slot, self.dropout = site.layer, f"{site.slot}.types", spec.dropout
        self.std, self.value_std, self.out_std = frame.std, frame.branch_std, frame.out_std
        self.head_dim = spec.head_width(dim)
        width = spec.n_heads * self.head_dim
        self.q, self.k, self.v, self.r = (nn.Linear(dim, width, bias=False) for _ in range(4))
        self.o = nn.Linear(width, dim, bias=False)
        for name in BIASES:
            self.register_parameter(name, nn.Parameter(torch.zeros(spec.n_heads, self.head_dim)))

    def declare(self) -> dict[str, Parameter]:
        declared = dict.fromkeys(BIASES, Parameter(Normal(self.std), Layout.column, decay=False))
        declared |= declare_linear("o", self.o, self.out_std, Layout.row)
        for name in "qkvr":
            declared |= declare_linear(
                name, getattr(self, name), self.value_std if name == "v" else self.std, Layout.column, self.head_dim
            )
        return declared

    def visited(self) -> float:
        """The map of distances is applied to each distance of a step once, not to each token."""
        return float(sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.o)))

    def forward(self, x_BQM: Tensor, context: Context) -> Tensor:
        assert context.relative is not None, "model/position=relative gives it"
        streams = context.mask.streams
        content_BTM = x_BQM[:, : x_BQM.shape[1] // streams]
        q_BHQD = split_heads(self.q(x_BQM), self.head_dim)
        k_BHSD, v_BHSD = (split_heads(linear(content_BTM), self.head_dim) for linear in (self.k, self.v))
        if context.state is not None:
            k_BHSD, v_BHSD = context.state.append(self.layer, k_BHSD, v_BHSD)
        r_HLD = self.r(context.relative).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        scores_BHQL = (q_BHQD + self.distance_bias[:, None]) @ r_HLD.transpose(1, 2)
        if context.pieces is None:
            bias_BHQS = torch.cat([by_distance(scores, k_BHSD.shape[2]) for scores in scores_BHQL.chunk(streams, 2)], 2)
        else:
            bias_BHQS = by_place(scores_BHQL, *context.mask.order())
        if context.types is not None:
            types_BS = self._of_keys(context.types, context)
            bias_BHQS = bias_BHQS + self._of_segments(q_BHQD, context.types.repeat(1, streams), types_BS)
        dropout = self.dropout if self.training else 0.0
        bias_BHQS = bias_BHQS * self.head_dim**-0.5
        y_BHQD = attend(q_BHQD + self.content_bias[:, None], k_BHSD, v_BHSD, context.mask, bias_BHQS, dropout=dropout)
        return self.o(y_BHQD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _of_segments(self, q_BHQD: Tensor, types_BQ: Tensor, types_BS: Tensor) -> Tensor:
        """[B, H, Q, S]."""
        other_BQS = types_BQ[:, :, None] != types_BS[:, None, :]
        vectors_H2D = torch.stack((self.same_segment, self.other_segment), 1)
        scores_BHQ2 = (q_BHQD + self.segment_bias[:, None]) @ vectors_H2D.transpose(1, 2)
        same_BHQ1, differ_BHQ1 = scores_BHQ2.chunk(2, -1)
        return torch.where(other_BQS[:, None], differ_BHQ1, same_BHQ1)

    def _of_keys(self, types_BT: Tensor, context: Context) -> Tensor:
        """Kinds of text of all keys; those of earlier calls are in the state, those of other pieces of the row with others."""
        if context.pieces is not None:
            return context.pieces.whole(types_BT)
        if context.state is None:
            return types_BT
        earlier = context.state.read(self.slot)
        types_BS = types_BT if earlier is None else torch.cat((earlier[0], types_BT), 1)
        context.state.write(self.slot, (types_BS,))
        return types_BS
