"""bfloat16 weights; what becomes of an update that is smaller than their last digit, `optim/narrow.py` says."""

from __future__ import annotations

import torch

from llmfactory.precision.plugin import MeshPrecision


def bf16_true(device_type: str) -> MeshPrecision:
    """No autocast: weights, and with them activations and products, are bfloat16. Gradients are added up in float32."""
    return MeshPrecision(device_type, weights=torch.bfloat16, gradients=torch.float32)
