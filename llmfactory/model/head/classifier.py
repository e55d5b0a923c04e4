"""One of a few classes for each document: dense and activation where there is a layer between, dropout, a linear map."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.head.part import LinearHead
from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Classifier
from llmfactory.model.part import declare_linear


class ClassifierHead(LinearHead):
    """hidden [B, T, D] -> pool [B, K, D] -> logits [B, K, n_classes]."""

    def __init__(self, spec: Classifier, dim: int, std: float) -> None:
        super().__init__(spec.n_classes, dim, std, spec.bias)
        self.pooling = spec.pooling
        self.input_dropout, self.dropout = nn.Dropout(spec.input_dropout), nn.Dropout(spec.dropout)
        self.dense = None if spec.activation is None else nn.Linear(dim, dim)
        self.activation = None if spec.activation is None else FUNCTIONS[spec.activation]

    def declare(self) -> dict[str, Parameter]:
        dense = {} if self.dense is None else declare_linear("dense", self.dense, self.std, Layout.replicated)
        return {**dense, **super().declare()}

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        return pooled(hidden_BTD, segments_BT, documents, self.pooling)

    def features(self, hidden: Tensor) -> Tensor:
        hidden = self.input_dropout(hidden)
        if self.dense is not None and self.activation is not None:
            hidden = self.activation(self.dense(hidden))
        return self.dropout(hidden)  # type: ignore[no-any-return]
