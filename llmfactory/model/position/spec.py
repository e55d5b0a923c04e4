"""Catalogue of position parts: they add to the embeddings, rotate queries and keys, or give a score bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.model.position.scaling.spec import None_ as Unscaled
from llmfactory.model.position.scaling.spec import ScalingSpec

if TYPE_CHECKING:
    from llmfactory.model.frame import Frame
    from llmfactory.model.position.part import Position


@dataclass(kw_only=True, slots=True)
class PositionSpec(Spec):
    """Base of the position parts."""

    gives_distances: ClassVar[bool] = False
    """Whether it gives vectors of distances, which only attention of their kind uses."""

    of_heads: ClassVar[bool] = False
    """Whether each head has numbers of its own, so that all layers need as many heads."""
    of_widths: ClassVar[bool] = False
    """Whether coordinates of heads are rotated, so that all layers need heads as wide."""

    @property
    def head_multiple(self) -> int:
        """The width of a head must be a multiple of this."""
        return 1

    def problems_at_head(self, head_dim: int) -> Iterator[Problem]:
        """What else is wrong once the width of a head is known."""
        yield from ()

    def build(self, frame: Frame) -> Position:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/position")


@dataclass(kw_only=True, slots=True)
class Rope(PositionSpec):
    """Rotary embedding (Su et al. 2021, equation 34)."""

    of_widths: ClassVar[bool] = True
    theta: float = 10000.0
    """Base of the wavelengths."""
    share: float = 1.0
    """Share of each head that is rotated, its first coordinates, in whole pairs (GPT-NeoX 0.25, Phi-2 0.4)."""
    interleaved: bool = False
    """Pair neighboring coordinates (GPT-J, ChatGLM2), not the two halves of the rotated ones (LLaMA)."""
    scaling: ScalingSpec = field(default_factory=Unscaled)

    @property
    def head_multiple(self) -> int:
        return 2 if self.share == 1 else 1

    def rotated(self, head_dim: int) -> int:
        """Width of the rotated part of a head."""
        return int(self.share * head_dim + 1e-6) // 2 * 2  # a share of 1/3 means a third, whatever its last binary digit

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 1.0, "theta", repair=10000.0)
        yield from above(self, 0.0, "share", repair=1.0)
        if self.share > 1:
            yield Problem("share", self.share, "must be at most 1.0", "share=1.0")

    def problems_at_head(self, head_dim: int) -> Iterator[Problem]:
        if self.rotated(head_dim) == 0:
            enough = -(-2000 // head_dim) / 1000
            yield Problem("share", self.share, f"of a head {head_dim} wide no pair is rotated", f"share={min(enough, 1.0)}")

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.rope import RotaryPosition

        return RotaryPosition(self, frame)


@dataclass(kw_only=True, slots=True)
class Rope2d(PositionSpec):
    """Rotary embedding of two positions, half of the head each (GLM, ChatGLM-6B)."""

    of_widths: ClassVar[bool] = True
    theta: float = 10000.0
    """Base of the wavelengths."""

    @property
    def head_multiple(self) -> int:
        return 4

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 1.0, "theta", repair=10000.0)

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.rope2d import TwoAxesRotaryPosition

        return TwoAxesRotaryPosition(self, frame)


@dataclass(kw_only=True, slots=True)
class Sinusoidal(PositionSpec):
    """Fixed sines and cosines, added to the embedding (Vaswani et al. 2017, section 3.5)."""

    theta: float = 10000.0
    """Base of the wavelengths."""
    interleaved: bool = True
    """Sine and cosine of a frequency are neighbors, as in the paper; false: all sines, then all cosines."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 1.0, "theta", repair=10000.0)

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.sinusoidal import SinusoidalPosition

        return SinusoidalPosition(self)


@dataclass(kw_only=True, slots=True)
class Alibi(PositionSpec):
    """Scores fall linearly with the distance, each head with its own slope (Press et al. 2022)."""

    of_heads: ClassVar[bool] = True

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.alibi import LinearBias

        return LinearBias(frame)


@dataclass(kw_only=True, slots=True)
class T5Bias(PositionSpec):
    """Trained score biases by buckets of distance, one table for all layers (Raffel et al. 2020, section 2.1)."""

    of_heads: ClassVar[bool] = True
    n_buckets: int = 32
    """Number of buckets, of both directions together where tokens see both."""
    max_distance: int = 128
    """Distance, in tokens, from which all are in the last bucket."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 4, "n_buckets")
        if self.n_buckets % 2:
            yield Problem(
                "n_buckets", self.n_buckets, "is halved where tokens see both directions", f"n_buckets={self.n_buckets + 1}"
            )
        if self.n_buckets >= 4 and self.max_distance <= self.n_buckets // 2:
            reason = f"the first n_buckets/2={self.n_buckets // 2} distances have a bucket each, and others must remain"
            yield Problem("max_distance", self.max_distance, reason, f"max_distance={4 * self.n_buckets}")

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.t5_bias import BucketBias

        return BucketBias(self, frame)


@dataclass(kw_only=True, slots=True)
class Relative(PositionSpec):
    """Waves of the distances between tokens, for attention that scores them (Dai et al. 2019, Transformer-XL; XLNet)."""

    gives_distances: ClassVar[bool] = True
    clamp: int | None = None
    """Distance, in tokens, beyond which all count alike; None: there is none."""
    dropout: float = 0.0
    """Share of the waves dropped, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "clamp")
        yield from between(self, 0.0, 0.99, "dropout")

    def small(self, scale: float) -> dict[str, Any]:
        return {} if self.clamp is None else {"clamp": min(self.clamp, 32)}

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.relative import RelativePosition

        return RelativePosition(self, frame)


@dataclass(kw_only=True, slots=True)
class Learned(PositionSpec):
    """One trained vector a position, added to the embedding (GPT-2, BERT)."""

    offset: int = 0
    """Rows of the table before the first position's, which nothing uses (OPT, RoBERTa: 2)."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "offset")

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.learned import LearnedPosition

        return LearnedPosition(self, frame)


@dataclass(kw_only=True, slots=True)
class Learned2d(PositionSpec):
    """Two trained vectors a token, of its place in the text and in a blank, added to the embedding (GLM)."""

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.learned2d import TwoAxesLearnedPosition

        return TwoAxesLearnedPosition(frame)


@dataclass(kw_only=True, slots=True)
class None_(PositionSpec):
    """No position information besides the causal mask (NoPE, Kazemnejad et al. 2023)."""

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.none import NoPosition

        return NoPosition()
