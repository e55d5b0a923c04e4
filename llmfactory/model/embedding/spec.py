"""Catalogue of embeddings: from ids to vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class EmbeddingSpec(Spec):
    """Base of the embeddings."""

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/embedding")


@dataclass(kw_only=True, slots=True)
class Token(EmbeddingSpec):
    """One trained vector a token."""

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        from llmfactory.model.embedding.token import TokenEmbedding

        return TokenEmbedding(vocab_size, dim, std)
