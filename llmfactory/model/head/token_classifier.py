"""One of a few classes for each token (named entities, parts of speech): dropout, then a linear map."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.model.head.part import LinearHead
from llmfactory.model.head.spec import TokenClassifier


class TokenClassifierHead(LinearHead):
    """hidden [..., D] -> logits [..., n_classes]."""

    def __init__(self, spec: TokenClassifier, dim: int, std: float) -> None:
        super().__init__(spec.n_classes, dim, std, bias=True)
        self.dropout = nn.Dropout(spec.dropout)

    def features(self, hidden: Tensor) -> Tensor:
        return self.dropout(hidden)  # type: ignore[no-any-return]
