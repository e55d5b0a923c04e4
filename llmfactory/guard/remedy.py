"""The interface of remedies: what is done about a step that went wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor


class Action(Enum):
    """What is done."""

    report = "the step is learned from"
    stop = "the run ends"
    skip = "the step does not reach the weights"
    clip = "the gradients are cut back"
    lower_lr = "the step does not reach the weights, and the learning rate is lower for a while"
    rewind = "the run goes back and leaves batches out"


@dataclass(frozen=True, slots=True)
class Finding:
    """A step that went wrong."""

    step: int
    """From 1."""
    finite: bool
    """It is a spike; else loss or gradients are no numbers."""
    loss: float
    norm: float
    """Of the gradients, before clipping."""
    loss_z: float
    norm_z: float
    loss_center: float
    norm_center: float
    """Of the window."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`details`: numbers of the action, as the log has them."""

    action: Action
    details: dict[str, Any]


class Remedy(ABC):
    """What a spike leads to. A step that is not finite never reaches the weights, whatever the remedy."""

    takes: ClassVar[bool] = False
    """A spike's step is learned from; then it is also what later steps are compared with."""

    @abstractmethod
    def decide(self, finding: Finding) -> Decision:
        """What is done about a step."""

    def most_norm(self, norm_center: Tensor) -> Tensor | None:
        """Largest gradient norm of a spike, by the center of the window; None: as everywhere."""
        return None
