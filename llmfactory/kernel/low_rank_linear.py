"""A frozen linear map with a trained change of low rank beside it (Hu et al. 2022): y = x W' + s (x A') B'.

One function in place of six: the gradient of W is not made and nothing is kept for it, the products with W go through
`product.py`, and what the change adds is added where the product stands, forward and backward:

    dz = s dy B      dx = dy W + dz A      dA = dz' x      dB = s dy' z      with z = x A'

z, which is narrow, is made anew in the backward pass. Shapes: N rows, I and O widths, R the rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.kernel.product import product_in_graph


def reference(x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The same by plain means."""
    return F.linear(x, weight_OI) + scale * F.linear(F.linear(x, a_RI), b_OR)


def low_rank_linear(x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """[..., I] -> [..., O]. Without a gradient of `weight_OI`."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight_OI, a_RI, b_OR = (one.to(dtype) for one in (x, weight_OI, a_RI, b_OR))
    y: Tensor = _LowRankLinear.apply(x.flatten(0, -2), weight_OI, a_RI, b_OR, scale)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight_OI.shape[0])


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        return product_in_graph(x_NI, weight_OI).addmm_(x_NI @ a_RI.T, b_OR.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR = ctx.saved_tensors
        grad_z_NR = grad_NO @ b_OR
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = product_in_graph(grad_NO, weight_OI.T).addmm_(grad_z_NR, a_RI, alpha=ctx.scale)
        if ctx.needs_input_grad[2]:
            grad_a = (grad_z_NR.T @ x_NI).mul_(ctx.scale)
        if ctx.needs_input_grad[3]:
            grad_b = (grad_NO.T @ (x_NI @ a_RI.T)).mul_(ctx.scale)
        return grad_x, None, grad_a, grad_b, None
