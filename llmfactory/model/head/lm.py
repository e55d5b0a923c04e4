"""The language-model head: hidden vectors to one logit a token, from a matrix of its own or from the embedding's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Layout, Normal, Parameter
from llmfactory.model.head.part import Head
from llmfactory.model.part import Part, declare_linear


class VocabularyHead(Head):
    """hidden [..., D] -> logits [..., V]; vectors pass through `transform` first where there is one, and are scaled."""

    def __init__(self, vocab_size: int, bias: bool, transform: Part | None, scale: float, softcap: float | None) -> None:
        super().__init__()
        self.transform, self.scale, self.softcap = transform, scale, softcap
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def declare(self) -> dict[str, Parameter]:
        return {} if self.bias is None else {"bias": Parameter(Constant(0.0), Layout.vocab, decay=False)}

    def features(self, hidden: Tensor) -> Tensor:
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.scale == 1 else hidden * self.scale


class OwnHead(VocabularyHead):
    """Owns its matrix [V, width]."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        std: float,
        *,
        bias: bool,
        transform: Part | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(vocab_size, bias, transform, scale, softcap)
        self.std = std
        self.weight = nn.Parameter(torch.zeros(vocab_size, width))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), Layout.vocab, fan_in=1), **super().declare()}


class TiedHead(VocabularyHead):
    """Borrows the embedding's matrix (Press and Wolf 2017).

    It looks the matrix up at every use, so that the tie holds when the embedding's parameter is replaced (moved off the
    meta device, cut, gathered), and the matrix has one name, one entry in a checkpoint and one gradient.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding: Part,
        *,
        bias: bool,
        transform: Part | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(vocab_size, bias, transform, scale, softcap)
        self._lender = (embedding,)  # in a tuple: a borrower does not register what it borrows

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        weight = self._lender[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def visited(self) -> float:
        return super().visited() + self.weight.numel()


class Projection(Part):
    """[..., D] -> [..., width]: to a vocabulary whose vectors have another width than the model."""

    def __init__(self, dim: int, width: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.dense = nn.Linear(dim, width, bias=False)

    def declare(self) -> dict[str, Parameter]:
        return declare_linear("dense", self.dense, self.std, Layout.replicated)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)  # type: ignore[no-any-return]
