"""Rows of a table, and the gradient of the table, added up in float32.

    y_n = w[i_n],   dw[v] = sum of dy_n over all n with i_n = v

A row that is looked up often gets a long sum. On the CPU PyTorch adds it up in the format of the table, and in bfloat16, which has 8 bits,
a sum of equal numbers stands still at 256 of them. On a GPU it adds up in float32 by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def embedding(ids: Tensor, weight_VD: Tensor) -> Tensor:
    """ids [...] -> rows [..., D]."""
    plain = type(weight_VD) in (Tensor, nn.Parameter) and weight_VD.device.type == "cpu"
    if weight_VD.dtype.itemsize >= torch.float32.itemsize or not plain:
        return F.embedding(ids, weight_VD)
    return _Embedding.apply(ids, weight_VD)  # type: ignore[no-any-return,no-untyped-call]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = weight_VD.shape[0]
        return F.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        dweight_VD = dy.new_zeros(ctx.rows, dy.shape[-1], dtype=torch.float32)
        return None, dweight_VD.index_add_(0, ids.flatten(), dy.reshape(-1, dy.shape[-1]).float())
