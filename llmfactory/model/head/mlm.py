"""The head of masked language models (Devlin et al. 2018, appendix A of the released code): dense, activation and norm, then one
logit a token, from the embedding's matrix or one of the head's own."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.part import Part, declare_linear


class Transform(Part):
    """[..., D] -> [..., width]: norm(activation(dense(x)))."""

    def __init__(self, dim: int, width: int, std: float, activation: Activation, norm: Part) -> None:
        super().__init__()
        self.std, self.activation = std, FUNCTIONS[activation]
        self.dense, self.norm = nn.Linear(dim, width), norm

    def declare(self) -> dict[str, Parameter]:
        return declare_linear("dense", self.dense, self.std, Layout.replicated)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))  # type: ignore[no-any-return]
