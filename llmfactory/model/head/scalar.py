"""One number: a reward of a document, or a value at every token (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from torch import Tensor

from llmfactory.model.head.part import LinearHead
from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Scalar


class ScalarHead(LinearHead):
    """hidden [B, T, D] -> pool [B, T or K, D] -> [B, T or K, 1]."""

    def __init__(self, spec: Scalar, dim: int, std: float) -> None:
        super().__init__(1, dim, std, spec.bias)
        self.pooling = spec.pooling

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        return hidden_BTD if self.pooling is None else pooled(hidden_BTD, segments_BT, documents, self.pooling)
