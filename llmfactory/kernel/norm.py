"""Normalization of rows, by whichever kernels a job has chosen.

RMSNorm (Zhang and Sennrich 2019, equation 4), with r = 1 / sqrt(mean(x^2) + eps):

    y = x r g,      dx = r (u - x^ mean(u x^)),   dg = sum over rows of dy x^,   where x^ = x r and u = dy g

LayerNorm (Ba et al. 2016, equation 4), with m = mean(x) and r = 1 / sqrt(mean((x - m)^2) + eps):

    y = (x - m) r g + b,   dx = r (u - mean(u) - x^ mean(u x^)),   dg as above,   db = sum over rows of dy,   x^ = (x - m) r

The gain g is offset + weight. Rows come and go in their own format; everything between is float32, or float64 for float64. Gradients
of gain and bias are partial sums over blocks of rows, added up in a fixed order: the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import compiled, way


def plain_rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """[..., D] -> [..., D] by PyTorch's operations."""
    wide = torch.promote_types(x.dtype, torch.float32)
    gain_D = weight_D.to(wide) + offset if offset else weight_D.to(wide)
    return F.rms_norm(x.to(wide), weight_D.shape, gain_D, eps).to(x.dtype)


def plain_layer_norm(x: Tensor, weight_D: Tensor | None, bias_D: Tensor | None, eps: float) -> Tensor:
    """[..., D] -> [..., D] by PyTorch's operations."""
    wide = torch.promote_types(x.dtype, torch.float32)
    gain_D = None if weight_D is None else weight_D.to(wide)
    bias_D = None if bias_D is None else bias_D.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], gain_D, bias_D, eps).to(x.dtype)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0, kernel: Kernel = Kernel.torch) -> Tensor:
    """[..., D] -> [..., D]."""
    by = way(kernel, x)
    if by is Kernel.triton:
        return _Norm.apply(x, weight_D, None, eps, offset, False)  # type: ignore[no-any-return,no-untyped-call]
    if by is Kernel.compile:
        return compiled(plain_rms_norm)(x, weight_D, eps, offset)  # type: ignore[no-any-return]
    # PyTorch has one operation for a GPU, many for a CPU.
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RmsNorm.apply(x, weight_D, eps, offset)  # type: ignore[no-any-return,no-untyped-call]
    return plain_rms_norm(x, weight_D, eps, offset)


def layer_norm(x: Tensor, weight_D: Tensor | None, bias_D: Tensor | None, eps: float, kernel: Kernel = Kernel.torch) -> Tensor:
    """[..., D] -> [..., D]; without gain or bias where they are None."""
    by = way(kernel, x)
    if by is Kernel.triton:
        return _Norm.apply(x, weight_D, bias_D, eps, 0.0, True)  # type: ignore[no-any-return,no-untyped-call]
    plain = compiled(plain_layer_norm) if by is Kernel.compile else plain_layer_norm
    return plain(x, weight_D, bias_D, eps)


class _RmsNorm(torch.autograd.Function):
    """`plain_rms_norm`, of which only x and r are kept; x^ is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide = x.to(wide)
        inverse = x_wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        ctx.offset = offset
        return (x_wide * inverse).mul_(weight_D.to(wide) + offset).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        need_x, need_weight, *_ = ctx.needs_input_grad
        dy, gain_D = dy.to(inverse.dtype), weight_D.to(inverse.dtype) + ctx.offset
        turned = x.to(inverse.dtype) * inverse
        products = dy * turned
        dweight_D = products.flatten(0, -2).sum(0).to(weight_D.dtype) if need_weight else None
        if not need_x:
            return None, dweight_D, None, None
        dx = (dy * gain_D).sub_(turned.mul_((products @ gain_D)[..., None] / len(gain_D))).mul_(inverse)
        return dx.to(x.dtype), dweight_D, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_D: Tensor | None, bias_D: Tensor | None, eps: float, offset: float, centered: bool
    ) -> Tensor:
        from llmfactory.kernel.tile import norm

        x_ND = x.reshape(-1, x.shape[-1]).contiguous()
        y_ND, mean_N, inverse_N = norm.forward(x_ND, weight_D, bias_D, eps, offset, centered)
        ctx.save_for_backward(x_ND, weight_D, mean_N, inverse_N)
        ctx.offset, ctx.bias_dtype = offset, None if bias_D is None else bias_D.dtype
        return y_ND.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from llmfactory.kernel.tile import norm

        x_ND, weight_D, mean_N, inverse_N = ctx.saved_tensors
        dy_ND = dy.reshape(x_ND.shape).contiguous()
        biased = ctx.bias_dtype is not None
        dx_ND, dgain_D, dbias_D = norm.backward(dy_ND, x_ND, weight_D, mean_N, inverse_N, ctx.offset, biased)
        dgain_D = None if dgain_D is None else dgain_D.to(weight_D.dtype)
        dbias_D = None if dbias_D is None else dbias_D.to(ctx.bias_dtype)
        return dx_ND.view(dy.shape), dgain_D, dbias_D, None, None, None
