"""Catalogue of position parts: they add to the embeddings, rotate queries and keys, or give a score bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from llmfactory.model.frame import Frame
    from llmfactory.model.position.part import Position


@dataclass(kw_only=True, slots=True)
class PositionSpec(Spec):
    """Base of the position parts."""

    def problems_at_head(self, head_dim: int) -> Iterator[Problem]:
        """What is wrong once the width of a head is known."""
        yield from ()

    def build(self, frame: Frame) -> Position:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/position")


@dataclass(kw_only=True, slots=True)
class Rope(PositionSpec):
    """Rotary embedding (Su et al. 2021, equation 34), the two halves of a head as real and imaginary part, as in LLaMA."""

    theta: float = 10000.0
    """Base of the wavelengths."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 1.0, "theta", repair=10000.0)

    def problems_at_head(self, head_dim: int) -> Iterator[Problem]:
        if head_dim % 2:
            yield Problem("theta", self.theta, f"rotation pairs up coordinates, but a head is {head_dim} wide (dim / n_heads)")

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.rope import RotaryPosition

        return RotaryPosition(self, frame)


@dataclass(kw_only=True, slots=True)
class Learned(PositionSpec):
    """One trained vector a position, added to the embedding (GPT-2, BERT)."""

    offset: int = 0
    """Rows of the table that stand before the first position's and are never used (BART, OPT: 2)."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "offset")

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.learned import LearnedPosition

        return LearnedPosition(self, frame)


@dataclass(kw_only=True, slots=True)
class None_(PositionSpec):
    """No position information besides the causal mask (NoPE, Kazemnejad et al. 2023)."""

    def build(self, frame: Frame) -> Position:
        from llmfactory.model.position.none import NoPosition

        return NoPosition()
