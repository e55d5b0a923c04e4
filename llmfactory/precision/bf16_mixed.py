"""bfloat16 matrix products with float32 weights (Kalamkar et al. 2019): float32's range, so no loss scale is needed."""

from __future__ import annotations

import torch

from llmfactory.precision.plugin import MeshPrecision


def bf16_mixed(device_type: str) -> MeshPrecision:
    """Autocast to bfloat16 on that kind of device."""
    return MeshPrecision(device_type, products=torch.bfloat16)
