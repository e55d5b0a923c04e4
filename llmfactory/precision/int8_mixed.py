"""int8 matrix products in the linear maps of a model, everything else as under `bf16_mixed` (`kernel/eight_bit_linear.py`)."""

from __future__ import annotations

from functools import partial

import torch

from llmfactory.kernel.eight_bit_linear import Numbers
from llmfactory.precision.eight_bit import to_eight_bits
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.precision.spec import Int8Mixed


def int8_mixed(spec: Int8Mixed, device_type: str) -> MeshPrecision:
    """Every kind of device multiplies int8."""
    numbers = Numbers(torch.int8, torch.int8, rows=True, stochastic=spec.stochastic)
    return MeshPrecision(device_type, products=torch.bfloat16, change=partial(to_eight_bits, numbers=numbers, skip=spec.skip))
