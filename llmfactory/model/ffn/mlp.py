"""Two-layer perceptron (Vaswani et al. 2017, equation 2): down(activation(up(x)))."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Mlp
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class MultiLayerPerceptron(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: Mlp, site: Site) -> None:
        super().__init__()
        dim, self.std, self.out_std = site.frame.dim, site.frame.branch_std, site.frame.out_std
        self.activation = FUNCTIONS[spec.activation]
        self.up = nn.Linear(dim, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("up", self.up, self.std, Layout.column),
            **declare_linear("down", self.down, self.out_std, Layout.row),
        }

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.down(self.activation(self.up(x_BTD)))  # type: ignore[no-any-return]
