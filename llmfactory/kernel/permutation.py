"""Tokens to the experts that they visit, and back, by whichever kernels a job has chosen.

Visits are sorted by expert: place n holds visit order[n], which is one of token order[n] // k. To the experts a row is copied for each
visit, x_n = x_token(n); the gradient of a token is the sum over its k visits, in their order. Back, visit v is what stands at the place
p with order[p] = v; its gradient is the copy the other way round. Nothing is added up atomically: the same bits every time.

Shapes: T tokens, N = T k visits, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way


def to_experts(x_TD: Tensor, order_N: Tensor, k: int, kernel: Kernel = Kernel.torch) -> Tensor:
    """[T, D] -> [N, D], a row for each visit, sorted as `order_N` says."""
    if way(kernel, x_TD) is Kernel.triton:
        return _ToExperts.apply(x_TD, order_N, k)  # type: ignore[no-any-return,no-untyped-call]
    return x_TD.index_select(0, order_N // k)


def back_to_tokens(y_ND: Tensor, order_N: Tensor, kernel: Kernel = Kernel.torch) -> Tensor:
    """[N, D] sorted by expert -> [N, D], a token's visits together."""
    if way(kernel, y_ND) is Kernel.triton:
        return _BackToTokens.apply(y_ND, order_N)  # type: ignore[no-any-return,no-untyped-call]
    return y_ND.index_select(0, order_N.argsort())


class _ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, k: int) -> Tensor:
        from llmfactory.kernel.tile import grouped

        ctx.save_for_backward(order_N)
        ctx.k = k
        return grouped.gather(x_TD.contiguous(), order_N, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        from llmfactory.kernel.tile import grouped

        (order_N,) = ctx.saved_tensors
        return grouped.add(grad_ND.contiguous(), order_N.argsort(), ctx.k), None, None


class _BackToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, order_N: Tensor) -> Tensor:
        from llmfactory.kernel.tile import grouped

        ctx.save_for_backward(order_N)
        return grouped.gather(y_ND.contiguous(), order_N.argsort())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        from llmfactory.kernel.tile import grouped

        (order_N,) = ctx.saved_tensors
        return grouped.gather(grad_ND.contiguous(), order_N), None
