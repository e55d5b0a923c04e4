"""The feed-forward parts of a mixture, all of a layer in three (gated) or two stacks of matrices.

Tokens come sorted by expert, so that each stack is one grouped product. Where experts are dealt to several processes, `dispatch`
takes the visits to them and brings back what they gave.

Shapes: N visits (a token that visits two experts is there twice), E experts, H hidden width, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.kernel.gated import gated
from llmfactory.kernel.grouped_linear import grouped_linear
from llmfactory.kernel.permutation import back_to_tokens, to_experts
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.model.frame import Site
from llmfactory.model.part import Part

Visit = Callable[[Tensor, Tensor], Tensor]
"""Visits [N, D] sorted by expert, and the end of each expert's -> what the experts give, [N, D]."""


class Experts(Part):
    """[T, D], and for each of T x k visits its expert -> [T k, D], a token's visits together: down(activation(gate(x)) * up(x))
    of each visited one."""

    def __init__(self, spec: MoeSpec, site: Site, k: int) -> None:
        super().__init__()
        self.count, dim, hidden = spec.n_experts, site.frame.dim, spec.hidden
        self.k, self.std, self.out_std = k, site.frame.branch_std, site.frame.out_std
        self.activation, self.activation_name = FUNCTIONS[spec.activation], spec.activation.name
        self.gate = nn.Parameter(torch.empty(self.count, hidden, dim)) if spec.gated else None
        self.up = nn.Parameter(torch.empty(self.count, hidden, dim))
        self.down = nn.Parameter(torch.empty(self.count, dim, hidden))
        self.dispatch: Callable[[Tensor, Tensor, Visit], Tensor] | None = None
        """Has visits of all experts made wherever these are, by `visit` there; None: all experts are here."""

    def declare(self) -> dict[str, Parameter]:
        inner = ("up",) if self.gate is None else ("gate", "up")
        return {
            **{name: Parameter(Normal(self.std), Layout.expert, hidden=1, fan_in=2) for name in inner},
            "down": Parameter(Normal(self.out_std), Layout.expert, hidden=2, fan_in=2),
        }

    def visited(self) -> float:
        return super().visited() * self.k / self.count

    def forward(self, x_TD: Tensor, experts_Tk: Tensor) -> Tensor:
        sorted_N, order_N = experts_Tk.flatten().sort(stable=True)
        experts_E = torch.arange(self.count, device=x_TD.device)
        ends_E = torch.searchsorted(sorted_N, experts_E, right=True, out_int32=True)  # a bincount would make a GPU wait
        x_ND = to_experts(x_TD, order_N, self.k, self.kernel)
        y_ND = self.visit(x_ND, ends_E) if self.dispatch is None else self.dispatch(x_ND, ends_E, self.visit)
        return back_to_tokens(y_ND, order_N, self.kernel)  # no view of it: FSDP puts a hook on what a unit returns

    def visit(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        """Visits to the experts that are here, those of the first one first; `ends_E`: the visit after each one's last."""
        hidden_NH = self.product("up", x_ND, ends_E)
        if self.gate is None:
            hidden_NH = self.activation(hidden_NH)
        else:
            hidden_NH = gated(self.product("gate", x_ND, ends_E), hidden_NH, self.activation, self.activation_name, self.kernel)
        return self.product("down", hidden_NH, ends_E)

    def product(self, name: str, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        """Visits times the matrices of a stack."""
        return grouped_linear(x_ND, getattr(self, name), ends_E, self.kernel)  # type: ignore[no-any-return]
