"""Gated linear unit (Shazeer 2020, equation 6): down(activation(gate(x)) * up(x))."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.kernel.gated import gated
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Glu
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class GatedLinearUnit(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Glu, site: Site) -> None:
        super().__init__()
        dim, self.std, self.out_std = site.frame.dim, site.frame.branch_std, site.frame.out_std
        self.activation, self.activation_name = FUNCTIONS[spec.activation], spec.activation.name
        self.gate = nn.Linear(dim, spec.hidden, bias=spec.bias)
        self.up = nn.Linear(dim, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("gate", self.gate, self.std, Layout.column),
            **declare_linear("up", self.up, self.std, Layout.column),
            **declare_linear("down", self.down, self.out_std, Layout.row),
        }

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        hidden_BTH = gated(self.gate(x_BTD), self.up(x_BTD), self.activation, self.activation_name, self.kernel)
        return self.down(hidden_BTH)  # type: ignore[no-any-return]
