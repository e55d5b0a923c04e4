"""float64 throughout: rounding noise so small that two layouts can be compared to nine digits."""

from __future__ import annotations

import torch

from llmfactory.precision.plugin import MeshPrecision


def fp64() -> MeshPrecision:
    """Weights are drawn in float32 and widened, so that runs start from the same numbers as in float32."""
    return MeshPrecision(weights=torch.float64)
