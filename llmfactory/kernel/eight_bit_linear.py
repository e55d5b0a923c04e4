"""Linear maps whose three matrix products are made of 8-bit numbers: the output, the gradient of the input, that of the weight.

    y = q(x) q(w)',   dx = q(dy) q(w),   dw = q(dy)' q(x),   where q(a) = round(a / s) s and s = largest |a| / largest 8-bit number

Each operand gets its scale when it is used (dynamic scaling), one for the whole tensor or one for each row of what is multiplied, that
is, along the dimension that is summed over, so that scales can be multiplied into the result. Weights stay as they are; nothing is
carried from one step to the next.

- float8 (Micikevicius et al. 2022, "FP8 formats for deep learning", section 3): E4M3, largest 448, for inputs and weights; for gradients
  E5M2, largest 57344, where one scale serves a whole tensor, E4M3 where each row has its own. Scales are powers of two, so that scaling
  rounds nothing, and what is quantized does not depend on how a batch or a matrix is cut, but for numbers 2^14 below the largest.
- int8 (Jouppi et al. 2017; for training e.g. Banner et al. 2018): whole numbers up to 127, summed exactly in int32; a scale for each row.
  Rounding may be at random, then the quantized operand is right in the mean (`random_bits.py`).

Hardware multiplies 8-bit numbers and sums in float32 (int32); `emulate` multiplies the same 8-bit numbers in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.kernel.linear import Product
from llmfactory.kernel.random_bits import random_bits

LEAST = 1e-12
"""Least |a| that a scale is made for, so that a row of zeros has one."""
SIGNIFICAND = 0x7FFFFF
"""The bits of a float32 below its exponent."""
MULTIPLE = 16
"""Hardware wants dimensions that are multiples of it; zeros fill them up."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What 8-bit numbers are used and how."""

    forward: torch.dtype
    """Of inputs and weights."""
    backward: torch.dtype
    """Of the gradient that comes from above."""
    rows: bool
    """A scale for each row; else one for the tensor."""
    stochastic: bool = False
    """Round at random (int8)."""
    emulate: bool = False
    """Multiply in float32."""


class EightBit(Product):
    """A linear map that multiplies 8-bit numbers."""

    numbers: Numbers

    def product(self, x: Tensor) -> Tensor:
        return eight_bit_linear(x, self.weight, self.numbers, noise=self.training)


def eight_bit_linear(x: Tensor, weight_OI: Tensor, numbers: Numbers, noise: bool = True) -> Tensor:
    """[..., I] -> [..., O] in the format of x, or autocast's. Not `noise`: rounding is to nearest in any case."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    keys = torch.randint(2**62, (6,), device=x.device) if numbers.stochastic and noise else None
    y_NO = _EightBit.apply(x.reshape(-1, x.shape[-1]), weight_OI, keys, numbers)  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class _EightBit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, keys: Tensor | None, numbers: Numbers) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI, keys)
        ctx.numbers = numbers
        kind = numbers.forward
        return product(x_NI, weight_OI, kind, kind, numbers, x_NI.dtype, None if keys is None else keys[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_NI, weight_OI, keys = ctx.saved_tensors
        numbers, dx_NI, dw_OI = ctx.numbers, None, None
        back, kind = numbers.backward, numbers.forward
        if ctx.needs_input_grad[0]:
            dx_NI = product(dy_NO, weight_OI.t(), back, kind, numbers, x_NI.dtype, None if keys is None else keys[2:4])
        if ctx.needs_input_grad[1]:
            dw_OI = product(dy_NO.t(), x_NI.t(), back, kind, numbers, x_NI.dtype, None if keys is None else keys[4:])
            dw_OI = dw_OI.to(weight_OI.dtype)
        return dx_NI, dw_OI, None, None


def product(
    a_MK: Tensor,
    b_NK: Tensor,
    kind_a: torch.dtype,
    kind_b: torch.dtype,
    numbers: Numbers,
    dtype: torch.dtype,
    keys: Tensor | None,
) -> Tensor:
    """[M, N] = a b', of quantized operands, in `dtype`."""
    a_MK, scale_a = quantized(a_MK, kind_a, numbers.rows, None if keys is None else keys[0])
    b_NK, scale_b = quantized(b_NK, kind_b, numbers.rows, None if keys is None else keys[1])
    if kind_a is torch.int8:
        return (_int8_product(a_MK, b_NK).float() * scale_a * scale_b.t()).to(dtype)
    if numbers.emulate:
        return (a_MK.float() @ b_NK.float().t() * scale_a * scale_b.t()).to(dtype)
    return _float8_product(a_MK, b_NK, scale_a, scale_b, numbers.rows).to(dtype)


def quantized(x_MK: Tensor, kind: torch.dtype, rows: bool, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """8-bit numbers [M, K] and what they are to be multiplied by: [M, 1], or [1, 1] for all."""
    x_MK = x_MK.float()
    largest = x_MK.abs().amax(1, keepdim=True) if rows else x_MK.abs().amax().view(1, 1)
    if kind is torch.int8:
        scale = largest.clamp_min(LEAST) / 127
        found = x_MK / scale
        found = found.round() if key is None else (found + _uniform(found, key)).floor()
        return found.clamp_(-127, 127).to(kind), scale
    top = torch.finfo(kind).max
    factor = power_of_two_below(top / largest.clamp_min(LEAST))
    return (x_MK * factor).clamp_(-top, top).to(kind), 1 / factor


def power_of_two_below(x: Tensor) -> Tensor:
    """The largest power of two that is not above x, for positive float32."""
    return x.view(torch.int32).bitwise_and(~SIGNIFICAND).view(torch.float32)


def _uniform(x: Tensor, key: Tensor) -> Tensor:
    """Numbers in [0, 1), of 24 bits."""
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view_as(x)
    return ((random_bits(index, key) >> 8) & 0xFFFFFF).float() * 2.0**-24


def _int8_product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """[M, N] in int32."""
    if a_MK.device.type == "cpu":
        return torch._int_mm(a_MK.contiguous(), b_NK.t())
    (m, _), n = a_MK.shape, b_NK.shape[0]
    rows = max(2 * MULTIPLE, m + -m % MULTIPLE)  # the kernel takes more than 16
    return torch._int_mm(_padded(a_MK, rows), _padded(b_NK, n + -n % MULTIPLE).t())[:m, :n]


def _float8_product(a_MK: Tensor, b_NK: Tensor, scale_a: Tensor, scale_b: Tensor, rows: bool) -> Tensor:
    """[M, N]; with a scale for each row hardware gives bfloat16."""
    (m, _), n = a_MK.shape, b_NK.shape[0]
    wide = n + -n % MULTIPLE
    if rows:
        scale_b = F.pad(scale_b, (0, 0, 0, wide - n))
    else:
        scale_a, scale_b = scale_a.view(()), scale_b.view(())
    out = torch.bfloat16 if rows else torch.float32
    a, b = _padded(a_MK, m), _padded(b_NK, wide)
    return torch._scaled_mm(a, b.t(), scale_a, scale_b.t() if rows else scale_b, out_dtype=out)[:, :n]


def _padded(x_MK: Tensor, rows: int) -> Tensor:
    """Contiguous, with zeros up to so many rows and to a multiple of 16 columns."""
    more = -x_MK.shape[1] % MULTIPLE
    if not more and rows == x_MK.shape[0]:
        return x_MK.contiguous()
    whole = torch.zeros(rows, x_MK.shape[1] + more, dtype=torch.uint8, device=x_MK.device).view(x_MK.dtype)
    whole[: x_MK.shape[0], : x_MK.shape[1]] = x_MK
    return whole
