"""Rounding to bfloat16 up or down at random, so that the mean is the number itself (Gupta et al. 2015, section 3.1; for weights in
bfloat16: Zamirai et al. 2020, section 3).

    round(x) = up(x) with probability (x - down(x)) / (up(x) - down(x)), else down(x)

bfloat16 is float32 without its lower 16 bits. Adding 16 random bits to the bits of x and dropping the lower 16 carries over with just
that probability; the order of the bits is that of the numbers, so this holds over a change of exponent too.

An update below half of a weight's last digit is lost by rounding to nearest, each time; this way it arrives, in the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWER = 0xFFFF
"""The bits of float32 that bfloat16 has not."""


def stochastic_round(x: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, given random bits (int32, of which the lower 16 are used). What is not finite stays as it is."""
    lifted = (x.view(torch.int32) + (bits & LOWER)).bitwise_and_(~LOWER).view(torch.float32)
    return torch.where(x.isfinite(), lifted, x).to(torch.bfloat16)
