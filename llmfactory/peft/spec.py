"""Catalogue of parameter-efficient fine-tuning methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from torch import nn


@dataclass(kw_only=True, slots=True)
class PeftSpec(Spec):
    """Base of the methods."""

    def apply(self, model: nn.Module) -> None:
        """Change the built and filled model in place, so that only what the method trains requires gradients."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of peft")


@dataclass(kw_only=True, slots=True)
class None_(PeftSpec):
    """Every parameter of the model is trained."""

    def apply(self, model: nn.Module) -> None:
        model.requires_grad_(True)
