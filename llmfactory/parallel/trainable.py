"""What the strategy asks of those above it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from llmfactory.parallel.mesh import World

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class Trainable(Protocol):
    """Of a stage."""

    root: Any
    """The training module: its forward takes a micro-batch and returns the loss's sums by name. Layouts set its `multiple` and
    `cut` (`stage/training.py`)."""
    model: nn.Module
    """What it trains, a part of `root`."""
    clip_norm: float | None
    """Largest global gradient norm."""
    clip_value: float | None
    """Largest number in a gradient after that."""
    watched: Collection[str]
    """Names of sums that are no terms of the loss: they are only reported."""
    surveys: bool
    """The loss depends on sums over the whole step, which `root(batch, survey=True)` gives of a micro-batch."""

    def fill(self, world: World) -> None:
        """Give the parameters of `root`, which have been laid out over `world`, their first values."""
        ...

    def rest(self, step: int) -> None:
        """Drop the gradients of parameters that do not learn in a step, counted from 0."""
        ...

    def stepped(self, step: int, taken: Tensor) -> None:
        """Called after a step, counted from 0, while the gradients are still there; `taken`: it reached the weights."""
        ...

    def pull(self, scale: Tensor | None) -> None:
        """Add the gradients of penalties on the weights themselves to a step's; `scale`: the loss was multiplied by it."""
        ...

    def count(self, batch: Batch) -> dict[str, float]:
        """Denominators of the loss's terms by name, and `tokens`, the number of tokens, of a batch on the CPU."""
        ...


class Judge(Protocol):
    """Of a guard against divergence (`guard/guard.py`)."""

    def judge(self, step: int, loss: Tensor, norm: Tensor, broken: Tensor, overflow: Tensor) -> tuple[Tensor, Tensor | None]:
        """(whether a step, counted from 1, must not reach the weights, its largest gradient norm or None)."""
        ...


class Scale(Protocol):
    """Of a loss scale."""

    value: Tensor

    def update(self, overflow: Tensor) -> None: ...


class Formats(Protocol):
    """Of the precision plugin."""

    loss_scale: Scale | None
    gradients: torch.dtype | None
    """The format in which gradients are added up; None: that of the weights."""

    def convert_module(self, module: nn.Module) -> nn.Module: ...
    def forward_context(self) -> AbstractContextManager[Any]: ...
    def scaled(self, loss: Tensor) -> Tensor: ...
