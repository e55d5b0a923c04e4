"""A vector for each document: tanh of a linear map of its first token's (BERT's pooler, Devlin et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from llmfactory.model.head.part import LinearHead
from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Pooling


class PoolerHead(LinearHead):
    """hidden [B, T, D] -> pool [B, K, D] -> vectors [B, K, D] between -1 and 1."""

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        return pooled(hidden_BTD, segments_BT, documents, Pooling.first)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).tanh()
