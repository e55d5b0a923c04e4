"""The feed-forward parts of a mixture, all of a layer in three (gated) or two stacks of matrices.

Tokens come sorted by expert, so that each stack is one grouped product.

Shapes: N visits (a token that visits two experts is there twice), E experts, H hidden width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.kernel.grouped_linear import grouped_linear
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class Experts(Part):
    """[T, D], and for each of T x k visits its expert -> [T, k, D]: down(activation(gate(x)) * up(x)) of each visited one."""

    def __init__(self, spec: MoeSpec, site: Site, k: int) -> None:
        super().__init__()
        count, dim, hidden = spec.n_experts, site.frame.dim, spec.hidden
        self.k, self.std, self.out_std = k, site.frame.branch_std, site.frame.out_std
        self.activation = FUNCTIONS[spec.activation]
        self.gate = nn.Parameter(torch.empty(count, hidden, dim)) if spec.gated else None
        self.up = nn.Parameter(torch.empty(count, hidden, dim))
        self.down = nn.Parameter(torch.empty(count, dim, hidden))

    def declare(self) -> dict[str, Parameter]:
        inner = ("up",) if self.gate is None else ("gate", "up")
        return {
            **{name: Parameter(Normal(self.std), Layout.expert) for name in inner},
            "down": Parameter(Normal(self.out_std), Layout.expert),
        }

    def visited(self) -> float:
        return super().visited() * self.k / self.down.shape[0]

    def forward(self, x_TD: Tensor, experts_Tk: Tensor) -> Tensor:
        sorted_N, order_N = experts_Tk.flatten().sort(stable=True)
        experts_E = torch.arange(self.down.shape[0], device=x_TD.device)
        ends_E = torch.searchsorted(sorted_N, experts_E, right=True, out_int32=True)  # a bincount would make a GPU wait
        x_ND = x_TD.index_select(0, order_N // self.k)
        hidden_NH = grouped_linear(x_ND, self.up, ends_E)
        if self.gate is None:
            hidden_NH = self.activation(hidden_NH)
        else:
            hidden_NH = self.activation(grouped_linear(x_ND, self.gate, ends_E)) * hidden_NH
        y_ND: Tensor = grouped_linear(hidden_NH, self.down, ends_E)
        return y_ND.index_select(0, order_N.argsort()).view(*experts_Tk.shape, -1)
