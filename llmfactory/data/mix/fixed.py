"""Weights that stay as they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfactory.data.mix.spec import Fixed, Knot


def knots(spec: Fixed, tokens: Mapping[str, int]) -> list[Knot]:
    return [(0.0, spec.weights or dict.fromkeys(tokens, 1.0))]
