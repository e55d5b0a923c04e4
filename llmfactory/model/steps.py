"""A model's forward pass as a list of steps. A pipeline's stage is a slice of that list, so it cannot depart from the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from llmfactory.core.context import Context

HIDDEN = "hidden"
"""Name of the vectors that the last step leaves: the model's output."""


@dataclass(slots=True)
class Pass:
    """One forward pass, or a stage's part of it."""

    tokens: Tensor
    """[B, T] int64, what the model reads."""
    context: Context
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What steps leave for later ones, by name, rows first: all that one stage must send to the next."""
    prepared: dict[str, Context] = field(default_factory=dict)
    """Of each stack of blocks, by the name of what it carries: its context with what its position part has put in."""


class Step(NamedTuple):
    """A piece of the forward pass that is not cut any further."""

    modules: tuple[nn.Module, ...]
    """What it runs, in order."""
    run: Callable[[Pass], None]
    """Reads and changes what is carried."""
    weights: tuple[nn.Parameter, ...] = ()
    """Parameters that it uses besides those of `modules`."""
    layer: bool = False
    """Whether it is a layer: layers are dealt to the stages of a pipeline; what stands between them goes with a neighbour."""
