"""Catalogue of embeddings: from ids to vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class EmbeddingSpec(Spec):
    """Base of the embeddings."""

    reads: ClassVar[str] = "tokens"
    """What it makes vectors of: tokens or pictures."""

    def vector_width(self, dim: int) -> int | None:
        """Width of the vocabulary's own vectors, which a tied head borrows; None: there are none."""
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


@dataclass(kw_only=True, slots=True)
class TokenSegment(EmbeddingSpec):
    """A vector of the token and one of the kind of text that it belongs to, added (BERT)."""

    n_types: int
    """Number of kinds of text (question and passage); 1: all texts are of one kind, whatever their place in a pair (RoBERTa)."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_types")

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        from llmfactory.model.embedding.token_segment import TokenSegmentEmbedding

        return TokenSegmentEmbedding(vocab_size, self.n_types, dim, std)


@dataclass(kw_only=True, slots=True)
class Factorized(EmbeddingSpec):
    """One vector a token, of another width than the model's, and a linear map (Lan et al. 2020; OPT-350M)."""

    width: int
    """Of the tokens' vectors."""
    bias: bool = False
    """Whether the linear map has a bias."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")

    def small(self, scale: float) -> dict[str, Any]:
        return {"width": max(1, round(self.width * scale))}

    def vector_width(self, dim: int) -> int:
        return self.width

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        from llmfactory.model.embedding.factorized import FactorizedEmbedding

        return FactorizedEmbedding(self, vocab_size, dim, std)


@dataclass(kw_only=True, slots=True)
class Patch(EmbeddingSpec):
    """A linear map of each square of a picture, and a trained vector in front of them (Dosovitskiy et al. 2021, equation 1)."""

    reads: ClassVar[str] = "pictures"
    image_size: int
    """Height and width of the pictures, in pixels."""
    patch_size: int
    """Height and width of a square, in pixels."""
    channels: int = 3
    """Colors."""
    class_token: bool = True
    """Whether a trained vector, which may gather what is in the whole picture, stands before the squares."""
    bias: bool = False
    """Whether the map has a bias."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "image_size", "patch_size", "channels")
        if self.patch_size >= 1 and self.image_size % self.patch_size:
            nearest = max(1, round(self.image_size / self.patch_size)) * self.patch_size
            yield Problem(
                "image_size", self.image_size, f"is no multiple of patch_size={self.patch_size}", f"image_size={nearest}"
            )

    def small(self, scale: float) -> dict[str, Any]:
        """At most 3 x 3 squares of 4 pixels."""
        side, square = min(self.image_size // self.patch_size, 3), min(self.patch_size, 4)
        return {"image_size": side * square, "patch_size": square}

    @property
    def n_vectors(self) -> int:
        """Vectors of a picture."""
        return (self.image_size // self.patch_size) ** 2 + self.class_token

    def vector_width(self, dim: int) -> None:
        return None

    def build(self, vocab_size: int, dim: int, std: float) -> Part:
        """`vocab_size` means nothing to it."""
        from llmfactory.model.embedding.patch import PatchEmbedding

        return PatchEmbedding(self, dim, std)
