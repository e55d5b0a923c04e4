"""Catalogue of attention parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.model.norm.spec import NormSpec

if TYPE_CHECKING:
    from llmfactory.model.frame import Site
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class AttentionSpec(Spec):
    """Base of the attention parts."""

    of_memory: ClassVar[bool] = False
    """Whether it attends to an encoder's output, not to its own tokens."""
    takes_distances: ClassVar[bool] = False
    """Whether it scores the vectors of distances that model/position=relative gives."""
    n_heads: int
    """Number of query heads."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_heads")

    def small(self, scale: float) -> dict[str, Any]:
        """Few heads."""
        return {"n_heads": min(self.n_heads, 4)}

    def head_width(self, dim: int) -> int:
        """Width of what a position part rotates in a head, in a model of width `dim`."""
        return dim // self.n_heads

    def score_width(self, dim: int) -> int:
        """Multiply-adds for each pair of query and key: scores and values of all heads."""
        return 2 * self.n_heads * self.head_width(dim)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        """What is wrong once the model's width is known."""
        if dim % self.n_heads:
            below = next(n for n in range(min(self.n_heads, dim), 0, -1) if dim % n == 0)
            yield Problem("n_heads", self.n_heads, f"does not divide the model's width dim={dim}", f"n_heads={below}")

    def misfit(self, dim: int, multiple: int, needs: str) -> Problem:
        """The width of a head is no multiple of what another part needs, with fewer heads as the repair where that helps."""
        width = self.head_width(dim)
        reason = f"a head is dim / n_heads = {dim} / {self.n_heads} = {width} wide, and {needs}"
        fewer = next((n for n in range(self.n_heads, 0, -1) if dim % (n * multiple) == 0), None)
        return Problem("n_heads", self.n_heads, reason, None if fewer is None else f"n_heads={fewer}")

    def build(self, site: Site) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/attention")


@dataclass(kw_only=True, slots=True)
class MultiHeadSpec(AttentionSpec):
    """Base of the attention parts whose heads are cut out of one projection each for queries, keys and values."""

    head_dim: int | None = None
    """Width of one head; None: dim / n_heads. All heads together may be wider or narrower than the model (T5 11B, PaLM 540B)."""
    bias: bool = False
    """Whether the four projections have a bias."""
    qkv_bias: bool | None = None
    """Whether those of queries, keys and values have one; None: as `bias` says, which then holds for the output's alone."""
    scale: float | None = None
    """Factor of the products of queries and keys; None: 1 / sqrt(width of a head). T5: 1."""
    dropout: float = 0.0
    """Share of attention probabilities dropped, in training only."""

    @property
    def qkv_biased(self) -> bool:
        """Whether the projections of queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    def problems(self) -> Iterator[Problem]:
        yield from AttentionSpec.problems(self)
        yield from at_least(self, 1, "head_dim")
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from between(self, 0.0, 0.99, "dropout")

    def small(self, scale: float) -> dict[str, Any]:
        return with_head(AttentionSpec.small(self, scale), self.head_dim, self.n_heads, scale)

    def head_width(self, dim: int) -> int:
        return self.head_dim or AttentionSpec.head_width(self, dim)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        if self.head_dim is None:
            yield from AttentionSpec.problems_at_width(self, dim)

    def misfit(self, dim: int, multiple: int, needs: str) -> Problem:
        problem = AttentionSpec.misfit(self, dim, multiple, needs)
        wider = -(-self.head_width(dim) // multiple) * multiple
        if self.head_dim is not None:
            return Problem("head_dim", self.head_dim, f"a head is as wide, and {needs}", f"head_dim={wider}")
        return replace(problem, repair=problem.repair or f"head_dim={wider}")


@dataclass(kw_only=True, slots=True)
class Gqa(MultiHeadSpec):
    """Multi-head attention with shared key/value heads (Ainslie et al. 2023). MHA: n_kv_heads = n_heads; MQA: 1."""

    n_kv_heads: int | None = None
    """Number of key/value heads; None: as many as n_heads."""
    qk_norm: NormSpec | None = None
    """Norm over each head of the queries and of the keys, before the rotation (Qwen 3); None: there is none."""
    window: int | None = None
    """Tokens that a query sees at most, itself and those nearest to it (Beltagy et al. 2020, Mistral); None: no limit."""
    softcap: float | None = None
    """Bound of the scores: softcap * tanh(score / softcap), which no fused kernel computes (Gemma 2); None: no bound."""

    def problems(self) -> Iterator[Problem]:
        yield from MultiHeadSpec.problems(self)
        yield from at_least(self, 1, "n_kv_heads", "window")
        yield from above(self, 0.0, "softcap", repair=50.0)
        if self.n_kv_heads and self.n_kv_heads >= 1 and self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", self.n_kv_heads, f"does not divide n_heads={self.n_heads}", "n_kv_heads=null")

    def small(self, scale: float) -> dict[str, Any]:
        """Few heads in the same ratio: two key/value heads where there were several, one where there was one."""
        if self.n_kv_heads is None:
            heads = AttentionSpec.small(self, scale)
        else:
            kept = min(self.n_kv_heads, 2)
            heads = {"n_heads": self.n_heads // self.n_kv_heads * kept, "n_kv_heads": kept}
        if self.window is not None:
            heads["window"] = min(self.window, TOY_WINDOW)
        return with_head(heads, self.head_dim, self.n_heads, scale)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        yield from map(self._with_kv_heads, MultiHeadSpec.problems_at_width(self, dim))

    def misfit(self, dim: int, multiple: int, needs: str) -> Problem:
        return self._with_kv_heads(MultiHeadSpec.misfit(self, dim, multiple, needs))

    def _with_kv_heads(self, problem: Problem) -> Problem:
        """A number of heads as repair must suit the number of key/value heads."""
        key, _, fewer = (problem.repair or "").partition("=")
        shared = key == "n_heads" and self.n_kv_heads is not None and int(fewer) % self.n_kv_heads
        return replace(problem, repair=f"{problem.repair} n_kv_heads=null") if shared else problem

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.gqa import GroupedQueryAttention

        return GroupedQueryAttention(self, site)


@dataclass(kw_only=True, slots=True)
class Cross(MultiHeadSpec):
    """Attention from a decoder's tokens to an encoder's output (Vaswani et al. 2017, section 3.2.3)."""

    of_memory: ClassVar[bool] = True

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.cross import CrossAttention

        return CrossAttention(self, site)


@dataclass(kw_only=True, slots=True)
class Mla(AttentionSpec):
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values are made of one short vector."""

    kv_lora_rank: int
    """Width of the vector that keys and values are made of, which a decoding state keeps."""
    q_lora_rank: int | None = None
    """Width of the vector that queries are made of; None: they are made of the input directly."""
    qk_nope_head_dim: int
    """Width of a head's queries and keys that is not rotated."""
    qk_rope_head_dim: int
    """Width of a head's queries, and of the one key of all heads, that is rotated."""
    v_head_dim: int
    """Width of a head's values."""
    eps: float = 1e-6
    """Added to the mean square in the norms of the short vectors."""
    bias: bool = False
    """Whether the projections to the short vectors and the output's have a bias."""
    scale: float | None = None
    """Factor of the products of queries and keys; None: 1 / sqrt(width of a head's queries)."""
    dropout: float = 0.0
    """Share of attention probabilities dropped, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from AttentionSpec.problems(self)
        yield from at_least(self, 1, "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim")
        yield from at_least(self, 2, "qk_rope_head_dim")
        yield from above(self, 0.0, "eps", repair=1e-6)
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from between(self, 0.0, 0.99, "dropout")

    def small(self, scale: float) -> dict[str, Any]:
        """Widths in the same ratios to the model, in multiples of 4."""
        heads = AttentionSpec.small(self, scale)
        per_head = scale * self.n_heads / heads["n_heads"]
        widths = {"kv_lora_rank": self.kv_lora_rank * scale}
        if self.q_lora_rank is not None:
            widths["q_lora_rank"] = self.q_lora_rank * scale
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            widths[name] = getattr(self, name) * per_head
        return heads | {name: max(1, round(width / 4)) * 4 for name, width in widths.items()}

    def head_width(self, dim: int) -> int:
        return self.qk_rope_head_dim

    def score_width(self, dim: int) -> int:
        return self.n_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        yield from ()

    def misfit(self, dim: int, multiple: int, needs: str) -> Problem:
        width = self.qk_rope_head_dim
        return Problem(
            "qk_rope_head_dim", width, f"it is rotated, and {needs}", f"qk_rope_head_dim={-(-width // multiple) * multiple}"
        )

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.mla import LatentAttention

        return LatentAttention(self, site)


@dataclass(kw_only=True, slots=True)
class RelativeSpec(AttentionSpec):
    """Base of the attention parts that score the vectors of distances, which model/position=relative gives."""

    takes_distances: ClassVar[bool] = True
    head_dim: int | None = None
    """Width of one head; None: dim / n_heads."""
    dropout: float = 0.0
    """Share of attention probabilities dropped, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from AttentionSpec.problems(self)
        yield from at_least(self, 1, "head_dim")
        yield from between(self, 0.0, 0.99, "dropout")

    def small(self, scale: float) -> dict[str, Any]:
        return with_head(AttentionSpec.small(self, scale), self.head_dim, self.n_heads, scale)

    def head_width(self, dim: int) -> int:
        return self.head_dim or AttentionSpec.head_width(self, dim)

    def score_width(self, dim: int) -> int:
        return 3 * self.n_heads * self.head_width(dim)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        if self.head_dim is None:
            yield from AttentionSpec.problems_at_width(self, dim)


@dataclass(kw_only=True, slots=True)
class Relative(RelativeSpec):
    """Attention by content and distance, with keys of earlier segments (Dai et al. 2019, Transformer-XL)."""

    memory: int | None = None
    """Tokens before those of a call whose keys are seen, where there is a decoding state; None: all of them."""

    def problems(self) -> Iterator[Problem]:
        yield from RelativeSpec.problems(self)
        yield from at_least(self, 0, "memory")

    def small(self, scale: float) -> dict[str, Any]:
        return RelativeSpec.small(self, scale) | ({} if self.memory is None else {"memory": min(self.memory, 64)})

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.relative import RelativeAttention

        return RelativeAttention(self, site)


@dataclass(kw_only=True, slots=True)
class TwoStream(RelativeSpec):
    """Attention by content, distance and kind of text, for tokens whose content may be hidden (Yang et al. 2019): XLNet.

    Without a second stream it is relative attention like any other.
    """

    def build(self, site: Site) -> Part:
        from llmfactory.model.attention.two_stream import TwoStreamAttention

        return TwoStreamAttention(self, site)


def with_head(heads: dict[str, Any], head_dim: int | None, n_heads: int, scale: float) -> dict[str, Any]:
    """`heads` of a laptop-sized part, with a width of one head, a multiple of 4, that keeps the ratio of all to the model."""
    if head_dim is None:
        return heads
    return heads | {"head_dim": max(1, round(head_dim * n_heads * scale / heads["n_heads"] / 4)) * 4}


TOY_WINDOW = 16
"""Tokens: less than a laptop-sized row, so that the window shows."""
