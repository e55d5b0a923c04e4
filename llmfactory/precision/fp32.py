"""float32 throughout."""

from __future__ import annotations

from llmfactory.precision.plugin import MeshPrecision


def fp32() -> MeshPrecision:
    """No autocast, no loss scale."""
    return MeshPrecision()
