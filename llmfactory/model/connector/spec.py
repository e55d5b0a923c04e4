"""Catalogue of connectors: from a vision encoder's output to vectors that stand among a decoder's embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.norm.spec import NormSpec

if TYPE_CHECKING:
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class ConnectorSpec(Spec):
    """Base of the connectors."""

    def n_vectors(self, n_features: int) -> int:
        """Vectors that a picture of so many features takes among the tokens."""
        return n_features

    def build(self, width: int, dim: int, std: float) -> Part:
        """From features [N, P, width] of N pictures to vectors [N, Q, dim]; `std` of initial weight matrices."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/connector")


@dataclass(kw_only=True, slots=True)
class Projector(ConnectorSpec):
    """Linear maps with a nonlinearity between them, feature by feature (Liu et al. 2023, LLaVA)."""

    n_layers: int
    """Number of linear maps."""
    activation: Activation = Activation.gelu
    """The nonlinearity between two maps."""
    bias: bool = True
    """Whether the maps have a bias."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_layers")

    def build(self, width: int, dim: int, std: float) -> Part:
        from llmfactory.model.connector.projector import FeatureProjector

        return FeatureProjector(self, width, dim, std)


@dataclass(kw_only=True, slots=True)
class QFormer(ConnectorSpec):
    """Trained queries that read the features through a small post-norm stack, then a linear map (Li et al. 2023, BLIP-2)."""

    n_queries: int
    """Trained query vectors: what a picture becomes."""
    dim: int
    """Width of the stack."""
    n_layers: int
    """Number of its blocks."""
    n_heads: int
    """Attention heads of each."""
    hidden: int
    """Width of their feed-forward part's hidden layer."""
    norm: NormSpec
    cross_every: int = 2
    """Every so many blocks, from the first on, attend to the features."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_queries", "dim", "n_layers", "n_heads", "hidden", "cross_every")
        if self.n_heads >= 1 and self.dim % self.n_heads:
            yield Problem("n_heads", self.n_heads, f"does not divide the stack's width dim={self.dim}", "n_heads=1")

    def small(self, scale: float) -> dict[str, Any]:
        """Two blocks, or as many as lie between two that read the features; few queries and heads."""
        heads = min(self.n_heads, 4)
        width = heads * max(1, round(self.dim * scale / heads))
        return {
            "n_queries": min(self.n_queries, 4),
            "dim": width,
            "n_layers": min(self.n_layers, max(2, self.cross_every)),
            "n_heads": heads,
            "hidden": max(1, round(self.hidden * width / self.dim)),
        }

    def n_vectors(self, n_features: int) -> int:
        return self.n_queries

    def build(self, width: int, dim: int, std: float) -> Part:
        from llmfactory.model.connector.q_former import QueryingTransformer

        return QueryingTransformer(self, width, dim, std)
