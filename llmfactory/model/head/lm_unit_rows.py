"""The head of Baichuan 2 (Yang et al. 2023, section 2.4): each row of the matrix is divided by its length, so that the norm of a
rare token's vector says nothing and the logits measure angles. The losses see the divided matrix, as of any head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.head.lm import VocabularyHead


class UnitRowsHead(VocabularyHead):
    """hidden [..., D] -> logits [..., V]."""

    def __init__(self, vocab_size: int, dim: int, std: float) -> None:
        super().__init__(vocab_size, bias=False, transform=None, scale=1.0, softcap=None)
        self.std = std
        self.rows = nn.Parameter(torch.zeros(vocab_size, dim))

    def declare(self) -> dict[str, Parameter]:
        return {"rows": Parameter(Normal(self.std), Layout.vocab)}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(self.rows.dtype, torch.float32)
        return F.normalize(self.rows.to(wide), dim=-1).to(self.rows.dtype)
