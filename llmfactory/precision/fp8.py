"""float8 matrix products in the linear maps of a model, everything else as under `bf16_mixed` (`kernel/eight_bit_linear.py`)."""

from __future__ import annotations

from functools import partial

import torch

from llmfactory.core.errors import UserError
from llmfactory.kernel.eight_bit_linear import Numbers
from llmfactory.precision.eight_bit import to_eight_bits
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.precision.spec import Fp8, Recipe

CAPABILITY = 8, 9
"""The first NVIDIA GPUs that multiply float8 (Ada; Hopper is 9.0)."""


def fp8(spec: Fp8, device_type: str) -> MeshPrecision:
    """Raises UserError where the device does not multiply float8 and `emulate` is off."""
    if not spec.emulate and not multiplies_float8(device_type):
        raise UserError(f"precision=fp8: this {device_type} does not multiply float8 numbers: use precision.emulate=true")
    rows = spec.recipe is Recipe.row_wise
    forward = torch.float8_e4m3fn
    numbers = Numbers(forward, forward if rows else torch.float8_e5m2, rows, emulate=spec.emulate)
    return MeshPrecision(device_type, products=torch.bfloat16, change=partial(to_eight_bits, numbers=numbers, skip=spec.skip))


def multiplies_float8(device_type: str) -> bool:
    """The meta device has no numbers to multiply."""
    return device_type == "meta" or (device_type == "cuda" and torch.cuda.get_device_capability() >= CAPABILITY)
