"""Catalogue of heads: from hidden vectors to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmfactory.model.head.part import Head
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class HeadSpec(Spec):
    """Base of the heads."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/head")


@dataclass(kw_only=True, slots=True)
class Lm(HeadSpec):
    """A linear map to one logit a token."""

    tied: bool
    """Borrow the embedding's matrix (Press and Wolf 2017) instead of owning one."""
    bias: bool = False
    """Whether the logits have a bias."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.lm import OwnHead, TiedHead

        return TiedHead(self, vocab_size, embedding) if self.tied else OwnHead(self, vocab_size, dim, std)
