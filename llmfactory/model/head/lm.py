"""The language-model head: hidden vectors to one logit a token, from a matrix of its own or from the embedding's.

A loss may fuse the matrix product with the cross-entropy: it takes `weight` [V, D] and `bias` ([V] or None) instead of
calling the head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Layout, Normal, Parameter
from llmfactory.model.head.part import Head
from llmfactory.model.head.spec import Lm
from llmfactory.model.part import Part


class LanguageModelHead(Head):
    """hidden [..., D] -> logits [..., V]."""

    def __init__(self, spec: Lm, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if spec.bias else None

    def declare(self) -> dict[str, Parameter]:
        return {} if self.bias is None else {"bias": Parameter(Constant(0.0), Layout.vocab, decay=False)}

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return F.linear(hidden_BTD, self.weight, self.bias)


class OwnHead(LanguageModelHead):
    """Owns its matrix."""

    def __init__(self, spec: Lm, vocab_size: int, dim: int, std: float) -> None:
        super().__init__(spec, vocab_size)
        self.std = std
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), Layout.vocab), **super().declare()}


class TiedHead(LanguageModelHead):
    """Borrows the embedding's matrix (Press and Wolf 2017).

    It looks the matrix up at every use, so that the tie holds when the embedding's parameter is replaced (moved off the
    meta device, cut, gathered), and the matrix has one name, one entry in a checkpoint and one gradient.
    """

    def __init__(self, spec: Lm, vocab_size: int, embedding: Part) -> None:
        super().__init__(spec, vocab_size)
        self._lender = (embedding,)  # in a tuple: a borrower does not register what it borrows

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        weight = self._lender[0].weight
        assert isinstance(weight, Tensor)
        return weight
