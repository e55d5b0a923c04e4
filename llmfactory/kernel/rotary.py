"""Rotary positions (Su et al. 2021, equation 34), by whichever kernels a job has chosen.

Coordinates i and j of a pair turn by the angle a of a token: (x_i cos a - x_j sin a, x_j cos a + x_i sin a). Pairs stand half a group
apart: neighbors are groups of two, the halves of a head one group of its rotated width. With the table of sines signed accordingly,

    y_i = x_i cos_i + x_partner(i) sin_i,    dx_i = dy_i cos_i - dy_partner(i) sin_i

since a pair's sines are each other's negatives. Half precision is turned in the tables' float32 and cast back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import compiled, way


def plain(x_BHTD: Tensor, cos_B1TW: Tensor, sin_B1TW: Tensor, group: int) -> Tensor:
    """The same by PyTorch's operations."""
    width = cos_B1TW.shape[-1]
    turning = x_BHTD[..., :width]
    if group == width:
        partner = turning.roll(group // 2, -1)
    else:
        partner = turning.unflatten(-1, (-1, group)).roll(group // 2, -1).flatten(-2)  # type: ignore[no-untyped-call]
    turned = torch.addcmul(turning * cos_B1TW, partner, sin_B1TW).to(x_BHTD.dtype)
    return turned if width == x_BHTD.shape[-1] else torch.cat((turned, x_BHTD[..., width:]), -1)


def turn(x_BHTD: Tensor, cos_B1TW: Tensor, sin_B1TW: Tensor, group: int, kernel: Kernel = Kernel.torch) -> Tensor:
    """[B, H, T, D] with its first W coordinates turned; the tables are float32 or better, [B or 1, 1, T, W], sines with their signs."""
    by = way(kernel, x_BHTD)
    if by is Kernel.triton:
        return _Turn.apply(x_BHTD, cos_B1TW, sin_B1TW, group)  # type: ignore[no-any-return,no-untyped-call]
    return (compiled(plain) if by is Kernel.compile else plain)(x_BHTD, cos_B1TW, sin_B1TW, group)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHTD: Tensor, cos_B1TW: Tensor, sin_B1TW: Tensor, group: int) -> Tensor:
        from llmfactory.kernel.tile import rotary

        ctx.save_for_backward(cos_B1TW, sin_B1TW)
        ctx.group = group
        return rotary.turn(x_BHTD, cos_B1TW, sin_B1TW, group, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTD: Tensor) -> tuple[Tensor, None, None, None]:
        from llmfactory.kernel.tile import rotary

        cos_B1TW, sin_B1TW = ctx.saved_tensors
        return rotary.turn(dy_BHTD, cos_B1TW, sin_B1TW, ctx.group, back=True), None, None, None
