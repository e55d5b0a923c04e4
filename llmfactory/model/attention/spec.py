"""Catalogue of attention parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least, between

if TYPE_CHECKING:
    from llmfactory.model.frame import Site
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class AttentionSpec(Spec):
    """Base of the attention parts."""

    n_heads: int
    """Number of query heads."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_heads")

    def small(self, scale: float) -> dict[str, Any]:
        """Few heads."""
        return {"n_heads": min(self.n_heads, 4)}

    def head_width(self, dim: int) -> int:
        """Width of one head in a model of width `dim`."""
        return dim // self.n_heads

    def score_width(self, dim: int) -> int:
        """Multiply-adds for each pair of query and key: scores and values of all heads."""
        return 2 * self.n_heads * self.head_width(dim)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        """What is wrong once the model's width is known."""
        if dim % self.n_heads:
            below = next(n for n in range(min(self.n_heads, dim), 0, -1) if dim % n == 0)
            yield Problem("n_heads", self.n_heads, f"does not divide the model's width dim={dim}", f"n_heads={below}")

    def build(self, site: Site) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/attention")


@dataclass(kw_only=True, slots=True)
class Gqa(AttentionSpec):
    """Multi-head attention with shared key/value heads (Ainslie et al. 2023). MHA: n_kv_heads = n_heads; MQA: 1."""

    n_kv_heads: int | None = None
    """Number of key/value heads; None: as many as n_heads."""
    bias: bool = False
    """Whether the four projections have a bias."""
    dropout: float = 0.0
    """Share of attention probabilities dropped, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from AttentionSpec.problems(self)
        yield from at_least(self, 1, "n_kv_heads")
        yield from between(self, 0.0, 0.99, "dropout")
        if self.n_kv_heads and self.n_kv_heads >= 1 and self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", self.n_kv_heads, f"does not divide n_heads={self.n_heads}", "n_kv_heads=null")

    def small(self, scale: float) -> dict[str, Any]:
        """Few heads in the same ratio: two key/value heads where there were several, one where there was one."""
        if self.n_kv_heads is None:
            return AttentionSpec.small(self, scale)
        kept = min(self.n_kv_heads, 2)
        return {"n_heads": self.n_heads // self.n_kv_heads * kept, "n_kv_heads": kept}

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.gqa import GroupedQueryAttention

        return GroupedQueryAttention(self, site)
