"""float16 matrix products with float32 weights and dynamic loss scaling (Micikevicius et al. 2018)."""

from __future__ import annotations

import torch

from llmfactory.precision.loss_scale import LossScale
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.precision.spec import Fp16Mixed


def fp16_mixed(spec: Fp16Mixed, device_type: str) -> MeshPrecision:
    """Autocast to float16, on the CPU too, and a loss scale."""
    return MeshPrecision(device_type, products=torch.float16, loss_scale=LossScale(spec, device_type))
