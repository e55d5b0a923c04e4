"""Linear maps with a nonlinearity between them, feature by feature: one in LLaVA (Liu et al. 2023, equation 1), two in
LLaVA-1.5 (Liu et al. 2023b, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.connector.spec import Projector
from llmfactory.model.part import Part, declare_linear


class FeatureProjector(Part):
    """features [N, P, width] -> [N, P, dim]."""

    def __init__(self, spec: Projector, width: int, dim: int, std: float) -> None:
        super().__init__()
        self.std, self.activation = std, FUNCTIONS[spec.activation]
        self.maps = nn.ModuleList(nn.Linear(dim if number else width, dim, bias=spec.bias) for number in range(spec.n_layers))

    def declare(self) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        for number, linear in enumerate(self.maps):
            assert isinstance(linear, nn.Linear)
            found |= declare_linear(f"maps.{number}", linear, self.std, Layout.replicated)
        return found

    def forward(self, features_NPE: Tensor) -> Tensor:
        x = features_NPE
        for number, linear in enumerate(self.maps):
            x = linear(self.activation(x) if number else x)
        return x
