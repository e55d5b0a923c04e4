"""Rows of a matrix, sorted by group, each group times a weight of its own: the experts of a mixture.

y_n = weight_g x_n for the g that row n belongs to. No group is padded. torch's grouped product takes all groups at once; on a CPU it
is a loop over products by the BLAS library inside, and padding to the largest group is slower (2048 rows of 8 groups, 256 -> 512,
float32, forward and backward on an EPYC: 17.3 ms, padded 21.8). Where groups are large enough for oneDNN (`product.py`), a loop over
products by it is faster still (8 groups of 512 rows: 1.2 x; 60 of 136: 1.5 x).

Shapes: N rows, G groups, I and O widths.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way
from llmfactory.kernel.product import one_dnn_serves, product

ALIGNMENT = 16
"""Bytes that the rows of all operands must be a multiple of, for torch's grouped product."""


def reference(x_NI: Tensor, weight_GOI: Tensor, ends_G: Tensor) -> Tensor:
    """The same by a loop over the groups."""
    pieces = x_NI.tensor_split(ends_G[:-1].tolist())
    return torch.cat([F.linear(piece, weight) for piece, weight in zip(pieces, weight_GOI.unbind(), strict=True)])


# The compiler's idea of torch's grouped product (2.13) is for bfloat16 only.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def grouped_linear(x_NI: Tensor, weight_GOI: Tensor, ends_G: Tensor, kernel: Kernel = Kernel.torch) -> Tensor:
    """Rows times their groups' weights: [N, O].

    Args:
        x_NI: rows, those of group 0 first.
        ends_G: int32, the row after the last one of each group; the last is N.
        kernel: who computes it. On a GPU `auto` takes torch's own grouped product, where it serves the format.

    Returns:
        [N, O], in autocast's dtype where autocast is on, as of any linear map.
    """
    device = x_NI.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_NI, weight_GOI = x_NI.to(dtype), weight_GOI.to(dtype)
    own = x_NI.dtype is torch.bfloat16 or not x_NI.is_cuda
    if way(kernel, x_NI, fused_in_torch=own) is Kernel.triton:
        return _InTriton.apply(x_NI, weight_GOI, ends_G)  # type: ignore[no-any-return,no-untyped-call]
    groups, *widths = weight_GOI.shape
    if one_dnn_serves(x_NI, len(x_NI) * math.prod(widths) // groups):
        return _ByProducts.apply(x_NI, weight_GOI, ends_G)  # type: ignore[no-any-return,no-untyped-call]
    if not len(x_NI) or x_NI.dtype is torch.float64 or any(width * x_NI.element_size() % ALIGNMENT for width in widths):
        return reference(x_NI, weight_GOI, ends_G)
    y_NO = F.grouped_mm(x_NI.contiguous(), weight_GOI.transpose(1, 2), offs=ends_G)
    return _WholeGradient.apply(y_NO)  # type: ignore[no-any-return,no-untyped-call]


class _WholeGradient(torch.autograd.Function):
    """torch's grouped product refuses a gradient that is one number for all (of a sum)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_GOI: Tensor, ends_G: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_GOI)
        ctx.groups = [(g, slice(*rows)) for g, rows in enumerate(pairwise([0, *ends_G.tolist()])) if rows[0] < rows[1]]
        y_NO = x_NI.new_empty(len(x_NI), weight_GOI.shape[1])
        for g, rows in ctx.groups:
            y_NO[rows] = product(x_NI[rows], weight_GOI[g])
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_NI, weight_GOI = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x_NI)
            for g, rows in ctx.groups:
                grad_x[rows] = product(grad_NO[rows], weight_GOI[g].T)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight_GOI)
            for g, rows in ctx.groups:
                grad_weight[g] = product(grad_NO[rows].T, x_NI[rows].T)
        return grad_x, grad_weight, None


class _InTriton(torch.autograd.Function):
    """dx_n = dy_n W_g, and dW_g the sum over the group's rows of dy x^T."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_GOI: Tensor, ends_G: Tensor) -> Tensor:
        from llmfactory.kernel.tile import grouped

        x_NI = x_NI.contiguous()
        ctx.save_for_backward(x_NI, weight_GOI, ends_G)
        return grouped.rows(x_NI, weight_GOI, ends_G)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        from llmfactory.kernel.tile import grouped

        x_NI, weight_GOI, ends_G = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        grad_x = grouped.rows(grad_NO, weight_GOI.transpose(1, 2), ends_G) if ctx.needs_input_grad[0] else None
        grad_weight = grouped.weights(grad_NO, x_NI, ends_G) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None
