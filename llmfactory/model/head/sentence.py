"""A vector for each document from those of its tokens, without weights of its own (Reimers and Gurevych 2019, section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.sharding import Parameter
from llmfactory.model.head.part import Head
from llmfactory.model.head.pooling import pooled
from llmfactory.model.head.spec import Sentence


class SentenceHead(Head):
    """hidden [B, T, D] -> pool [B, K, D] -> vectors [B, K, D]. It has no matrix."""

    def __init__(self, spec: Sentence) -> None:
        super().__init__()
        self.pooling, self.normalize = spec.pooling, spec.normalize

    def declare(self) -> dict[str, Parameter]:
        return {}

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        return pooled(hidden_BTD, segments_BT, documents, self.pooling)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.normalize(hidden, dim=-1) if self.normalize else hidden
