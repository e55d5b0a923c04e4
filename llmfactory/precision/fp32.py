"""float32 throughout; on request TF32 inside matrix products (NVIDIA 2020, "A100 Tensor Core GPU architecture"): float32's range with
10 bits of significand, summed in float32."""

from __future__ import annotations

import torch

from llmfactory.core.errors import UserError
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.precision.spec import Fp32

CAPABILITY = 8, 0
"""The first NVIDIA GPUs that have TF32 (Ampere)."""


def fp32(spec: Fp32, device_type: str) -> MeshPrecision:
    """No autocast, no loss scale. PyTorch's switch for TF32 is the process's, so it is set either way where there is a GPU.

    Raises:
        UserError: TF32 is asked for and the device has none.
    """
    if spec.tf32 and not has_tf32(device_type):
        raise UserError(f"precision.tf32=true: this {device_type} has no TF32: use precision.tf32=false, or precision=bf16_mixed")
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high" if spec.tf32 else "highest")
    return MeshPrecision()


def has_tf32(device_type: str) -> bool:
    """The meta device has no numbers to multiply."""
    return device_type == "meta" or (device_type == "cuda" and torch.cuda.get_device_capability() >= CAPABILITY)
