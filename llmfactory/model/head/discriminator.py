"""Whether each token was replaced (ELECTRA, Clark et al. 2020, section 2): dense and activation, then one logit a token."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.head.part import LinearHead
from llmfactory.model.head.spec import Discriminator
from llmfactory.model.part import declare_linear


class DiscriminatorHead(LinearHead):
    """hidden [..., D] -> logits [..., 1] of "replaced"."""

    def __init__(self, spec: Discriminator, dim: int, std: float) -> None:
        super().__init__(1, dim, std, bias=True)
        self.dense, self.activation = nn.Linear(dim, dim), FUNCTIONS[spec.activation]

    def declare(self) -> dict[str, Parameter]:
        return {**declare_linear("dense", self.dense, self.std, Layout.replicated), **super().declare()}

    def features(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))
