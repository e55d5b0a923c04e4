"""Catalogue of embeddings: from ids to vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above

if TYPE_CHECKING:
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class EmbeddingSpec(Spec):
    """Base of the embeddings."""

    def vector_width(self, dim: int) -> int:
        """Width of the vocabulary's own vectors, which a tied head borrows."""
        return dim

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/embedding")


@dataclass(kw_only=True, slots=True)
class Token(EmbeddingSpec):
    """One trained vector a token."""

    scale: float = 1.0
    """Factor on the vectors."""
    dim_power: float = 0.0
    """The factor is also their width to this power (0.5: Vaswani et al. 2017, section 3.4; Gemma)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "scale", repair=1.0)

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        from llmfactory.model.embedding.token import TokenEmbedding

        return TokenEmbedding(vocab_size, dim, std, self.scale * dim**self.dim_power)
