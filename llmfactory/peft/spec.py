"""Catalogue of parameter-efficient fine-tuning methods."""

from __future__ import annotations

from dataclasses import dataclass

from llmfactory.core.spec import Spec


@dataclass(kw_only=True, slots=True)
class PeftSpec(Spec):
    """Base of the methods."""


@dataclass(kw_only=True, slots=True)
class None_(PeftSpec):
    """Every parameter of the model is trained."""
