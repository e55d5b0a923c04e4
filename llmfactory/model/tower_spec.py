"""Catalogue of stacks of blocks, which skeletons are made of; the second page of `spec.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least, between, stem
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.block.spec import BlockSpec
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.ffn.spec import FfnSpec
from llmfactory.model.norm.spec import NormSpec
from llmfactory.model.position.spec import PositionSpec


@dataclass(kw_only=True, slots=True)
class LayerSpec(Spec):
    """A kind of layer: what differs from the stack's own parts."""

    attention: AttentionSpec | None = None
    """None: the stack's."""
    ffn: FfnSpec | None = None
    """None: the stack's."""


BASE = "base"
"""In a pattern: a layer of the stack's own parts."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The parts of one layer."""

    attention: AttentionSpec
    ffn: FfnSpec


@dataclass(kw_only=True)
class TowerSpec(Spec):  # without slots, so that a skeleton can be a model and a tower at once
    """A stack of blocks: a decoder, an encoder, or one of both."""

    n_layers: int
    """Number of blocks."""
    norm: NormSpec
    position: PositionSpec
    attention: AttentionSpec
    ffn: FfnSpec
    block: BlockSpec
    cross: AttentionSpec | None = None
    """Attention to an encoder's output; None: there is no encoder."""
    dropout: float = 0.0
    """Share of activations dropped after the embedding and after each sub-layer, in training only."""
    depth_scaled_init: bool = True
    """Divide the initial std of the matrices that write to the residual stream by sqrt(2 n_layers) (GPT-2, section 2.3)."""
    others: dict[str, LayerSpec] = field(default_factory=dict)
    """Further kinds of layers, by a name that `pattern` uses."""
    pattern: list[str] = field(default_factory=list)
    """Kind of each layer (`base`: the stack's own parts), repeated over the depth; empty: all base."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_layers")
        yield from between(self, 0.0, 0.99, "dropout")
        for name in dict.fromkeys(self.pattern):
            if name != BASE and name not in self.others:
                known = ", ".join([BASE, *self.others])
                yield Problem(
                    "pattern", self.pattern, f"there is no kind of layer {name!r}: there are {known}", f"pattern=[{BASE}]"
                )
        for name in self.others:
            if name not in self.pattern:
                yield Problem(f"others.{name}", name, "no layer is of this kind", f"pattern=[{BASE},{name}]")
        if self.cross is not None and not self.block.takes_cross:
            reason = "has no place for attention to an encoder's output: pick pre_norm, post_norm or sandwich"
            yield Problem("block", stem(type(self.block)), reason, "model/block@block=pre_norm")
        kinds = {"attention": self.attention}
        kinds |= {f"others.{name}.attention": kind.attention for name, kind in self.others.items() if kind.attention}
        for path, part in kinds.items():
            yield from self._problems_of_distances(path, part)
        if len(self.pattern) > self.n_layers:
            reason = f"names more layers than the {self.n_layers} that there are"
            yield Problem("pattern", self.pattern, reason, f"n_layers={len(self.pattern)}")

    def _problems_of_distances(self, path: str, part: AttentionSpec) -> Iterator[Problem]:
        """Vectors of distances that a position part gives are scored, and those that attention scores are given."""
        position, name = stem(type(self.position)), stem(type(part))
        if part.takes_distances and not self.position.gives_distances:
            reason = f"scores vectors of distances, which model/position={position} does not give"
            yield Problem(path, name, reason, "model/position@position=relative")
        elif self.position.gives_distances and not part.takes_distances:
            reason = (
                f"does not look at the vectors of distances that model/position={position} gives, so there would be no positions"
            )
            yield Problem(path, name, reason, f"model/attention@{path}=relative")

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        """What is wrong once the model's width is known."""
        attentions = {"attention": self.attention}
        attentions |= {f"others.{name}.attention": kind.attention for name, kind in self.others.items() if kind.attention}
        crossing = {} if self.cross is None else {"cross": self.cross}
        found = [problem.below(path) for path, part in (attentions | crossing).items() for problem in part.problems_at_width(dim)]
        yield from found
        if not found:  # else there is no head width to speak of
            yield from self._problems_at_heads(attentions, dim)

    def _problems_at_heads(self, attentions: dict[str, AttentionSpec], dim: int) -> Iterator[Problem]:
        """Whether the position part fits the heads of every kind of layer."""
        heads, width = self.attention.n_heads, self.attention.head_width(dim)
        for path, part in attentions.items():
            other_heads = self.position.of_heads and part.n_heads != heads
            if other_heads or (self.position.of_widths and part.head_width(dim) != width):
                reason = f"has {part.n_heads} heads with {part.head_width(dim)} coordinates to rotate, "
                reason += f"and the stack's positions ({stem(type(self.position))}) are made for {heads} with {width}"
                yield Problem(f"{path}.n_heads", part.n_heads, reason, f"{path}=null")
        if width % self.position.head_multiple:
            needs = f"the positions ({stem(type(self.position))}) need a multiple of {self.position.head_multiple}"
            yield self.attention.misfit(dim, self.position.head_multiple, needs).below("attention")
        else:
            yield from (problem.below("position") for problem in self.position.problems_at_head(width))

    def small(self, scale: float) -> dict[str, Any]:
        """Two layers, or a whole pattern."""
        return {"n_layers": min(self.n_layers, max(2, len(self.pattern)))}

    def repeats(self) -> int:
        """How many layers in a row are the same block."""
        return 1

    def kinds(self) -> list[Kind]:
        """The parts of each layer."""
        base = Kind(self.attention, self.ffn)
        named = {name: Kind(kind.attention or self.attention, kind.ffn or self.ffn) for name, kind in self.others.items()}
        names = self.pattern or [BASE]
        return [named.get(names[layer % len(names)], base) for layer in range(self.n_layers)]


@dataclass(kw_only=True)
class VisionSpec(TowerSpec):
    """A vision encoder: a picture's squares through a stack of blocks (Dosovitskiy et al. 2021)."""

    dim: int
    """Width of the stack."""
    embedding: Patch
    """How a picture becomes vectors."""
    embedding_norm: bool = False
    """Normalize the embeddings before the first block (CLIP)."""
    layers_used: int | None = None
    """The features are what so many blocks give, without the last norm (LLaVA: all but one); None: all blocks and the norm."""
    keep_class: bool = True
    """Whether the class vector is one of the features."""

    def problems(self) -> Iterator[Problem]:
        yield from TowerSpec.problems(self)
        if self.dim < 1:
            yield Problem("dim", self.dim, "must be at least 1", "dim=128")
        else:
            yield from self.problems_at_width(self.dim)
        if self.layers_used is not None:
            yield from between(self, 1, self.n_layers, "layers_used")
        if self.cross is not None:
            yield Problem(
                "cross", stem(type(self.cross)), "a vision encoder has nothing to attend to but the picture's own squares"
            )
        if not self.keep_class and not self.embedding.class_token:
            yield Problem(
                "keep_class", False, "there is no class vector to drop (embedding.class_token=false)", "keep_class=true"
            )

    def small(self, scale: float) -> dict[str, Any]:
        """As many layers left out as there are, of two layers at least one used; heads of at least two coordinates."""
        layers, heads = TowerSpec.small(self, scale)["n_layers"], self.attention.small(scale)["n_heads"]
        unused = 0 if self.layers_used is None else min(self.n_layers - self.layers_used, layers - 1)
        used = None if self.layers_used is None else layers - unused
        dim = heads * max(2, round(self.dim * scale / heads))
        ffn = replace(self.ffn, **self.ffn.small(dim / self.dim))  # its ratio is to this width, which is rounded
        return {"n_layers": layers, "layers_used": used, "dim": dim, "ffn": ffn}

    @property
    def n_features(self) -> int:
        """Vectors that a picture becomes."""
        return self.embedding.n_vectors - (not self.keep_class)
