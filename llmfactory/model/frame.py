"""What a model tells its parts when it builds them, so that a part's `build` takes one argument and asks for what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfactory.model.part import Part
    from llmfactory.model.position.part import Position


@dataclass(frozen=True, slots=True)
class Frame:
    """Of one stack of blocks."""

    dim: int
    """Width of the residual stream."""
    n_layers: int
    n_heads: int
    """Query heads of the stack's own attention."""
    head_dim: int
    """Width of what a position part rotates in one of them."""
    max_positions: int
    """Longest sequence that the model is made for."""
    std: float
    """Of initial weight matrices."""
    out_std: float
    """Of the matrices that write to the residual stream."""
    causal: bool
    """Whether tokens see only what stands before them."""
    norm: Callable[[int], Part]
    """Makes a norm of a width."""
    name: str = ""
    """Of the stack, where a model has several: slots of the decoding state begin with it."""
    memory_dim: int | None = None
    """Width of the vectors that cross-attention reads; None: `dim`."""
    branch_scale: float = 1.0
    """Factor on the std of the matrices that a sub-layer's output grows with; `out_std` holds it already."""

    @property
    def branch_std(self) -> float:
        """Of the values of attention and the first matrices of a feed-forward."""
        return self.std * self.branch_scale


@dataclass(frozen=True, slots=True)
class Site:
    """Of one block in it."""

    frame: Frame
    layer: int
    """Number of the block, from 0."""
    position: Position
    """The stack's position part; the stack owns it."""

    @property
    def slot(self) -> str:
        """Start of the names under which this block's parts keep decoding state."""
        return f"{self.frame.name}.{self.layer}"
