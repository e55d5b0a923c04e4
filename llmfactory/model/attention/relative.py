"""Attention that scores distances (Dai et al. 2019, Transformer-XL, section 3.3): the score of query i for key j is

    (q_i + u) k_j + (q_i + w) W_r R_(i-j),

over sqrt(D), with R the waves of the distance (`context.relative`) and u, w trained vectors of each head (the paper's u and v).
Keys of earlier segments come from the decoding state; their number may be limited.

Legend: H heads, D head width, T queries, S keys, L distances, from the largest on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context, RecentMask
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.kernel.attention import attend
from llmfactory.model.attention.gqa import split_heads
from llmfactory.model.attention.spec import Relative
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class RelativeAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Relative, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        self.layer, self.dropout, self.memory = site.layer, spec.dropout, spec.memory
        self.std, self.value_std, self.out_std = frame.std, frame.branch_std, frame.out_std
        self.head_dim = spec.head_width(dim)
        width = spec.n_heads * self.head_dim
        self.q, self.k, self.v, self.r = (nn.Linear(dim, width, bias=False) for _ in range(4))
        self.o = nn.Linear(width, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(spec.n_heads, self.head_dim))
        self.distance_bias = nn.Parameter(torch.zeros(spec.n_heads, self.head_dim))

    def declare(self) -> dict[str, Parameter]:
        bias = Parameter(Normal(self.std), Layout.column, decay=False)
        declared = {"content_bias": bias, "distance_bias": bias} | declare_linear("o", self.o, self.out_std, Layout.row)
        for name in "qkvr":
            declared |= declare_linear(
                name, getattr(self, name), self.value_std if name == "v" else self.std, Layout.column, self.head_dim
            )
        return declared

    def visited(self) -> float:
        """The map of distances is applied to each distance of a step once, not to each token."""
        return float(sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.o)))

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        assert context.relative is not None, "model/position=relative gives it"
        q_BHTD, k_BHSD, v_BHSD = (split_heads(linear(x_BTM), self.head_dim) for linear in (self.q, self.k, self.v))
        relative_LM, mask = context.relative, context.mask
        if context.state is not None:
            k_BHSD, v_BHSD = context.state.append(self.layer, k_BHSD, v_BHSD)
            if self.memory is not None and k_BHSD.shape[2] > (used := self.memory + q_BHTD.shape[2]):
                relative_LM = relative_LM[k_BHSD.shape[2] - used :]
                k_BHSD, v_BHSD, mask = k_BHSD[:, :, -used:], v_BHSD[:, :, -used:], RecentMask(mask, used)
        r_HLD = self.r(relative_LM).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        scores_BHTL = (q_BHTD + self.distance_bias[:, None]) @ r_HLD.transpose(1, 2)
        if context.pieces is None:
            bias_BHTS = by_distance(scores_BHTL, k_BHSD.shape[2])
        else:
            bias_BHTS = by_place(scores_BHTL, *mask.order())
        bias_BHTS = bias_BHTS * self.head_dim**-0.5
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD + self.content_bias[:, None], k_BHSD, v_BHSD, mask, bias_BHTS, dropout=dropout)
        return self.o(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def by_distance(scores_BHTL: Tensor, n_keys: int) -> Tensor:
    """Scores by distance -> by key, [B, H, T, S].

    Queries are the last T of the S places, so that query t is S - T + t - s places behind key s. Column l of the input is
    the distance S - 1 - l. There are L >= S columns; distances without one (of keys after the query) get 0.
    """
    n_queries = scores_BHTL.shape[2]
    all_distances = n_keys + n_queries - 1
    scores_BHTL = F.pad(scores_BHTL, (0, all_distances - scores_BHTL.shape[3]))
    if n_queries == 1:
        return scores_BHTL
    # Row t begins at column T - 1 - t: one place earlier than the row above it, so a stride one shorter reads all rows.
    start, stride = n_queries - 1, all_distances - 1
    rows = scores_BHTL.flatten(2)[..., start : start + n_queries * stride]
    return rows.unflatten(-1, (n_queries, stride))[..., :n_keys]  # type: ignore[no-untyped-call,no-any-return]


def by_place(scores_BHTL: Tensor, order_1T: Tensor, order_1S: Tensor) -> Tensor:
    """The same for queries and keys at any places of a row of S."""
    n_places = order_1S.shape[1]
    scores_BHTL = F.pad(scores_BHTL, (0, max(0, 2 * n_places - 1 - scores_BHTL.shape[3])))
    column_TS = n_places - 1 - order_1T[0, :, None] + order_1S[0]
    return scores_BHTL.gather(3, column_TS.expand(*scores_BHTL.shape[:2], -1, -1))
