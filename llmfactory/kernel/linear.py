"""Linear maps: by the fastest product there is, and with product and bias apart.

`linear` is `F.linear` whose three products, y = x W' + b, dx = dy W and dW = dy' x, go through `product.py` where that is faster;
elsewhere it is `F.linear` itself. Layouts sum a `Product` before its bias is added, adapters change it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmfactory.kernel.product import LARGE, one_dnn_serves, product_in_graph


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """[..., I] -> [..., O]. Differentiable once where the products are not torch's own."""
    if not _faster(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight_OI.shape[0])


def quicken(root: nn.Module) -> None:
    """Let the linear maps of `root` run by `linear`, in place. Names of parameters stay, and so do the classes of modules."""
    for module in root.modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias)


def _faster(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether whole float32 matrices are multiplied here that are large enough, and not to be cast first."""
    whole = (Tensor, nn.Parameter)  # no pieces of a distributed tensor, nothing packed
    if type(x) not in whole or type(weight_OI) not in whole or x.dim() < 2 or x.dtype is not weight_OI.dtype:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    size = x.numel() * weight_OI.shape[0]
    if torch.compiler.is_compiling():  # which has no product of its own for whole float32 matrices, but calls torch's
        return x.device.type == "cpu" and x.dtype is torch.float32 and size >= LARGE
    return one_dnn_serves(x, size)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        y_NO = product_in_graph(x_NI, weight_OI)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            product_in_graph(grad_NO, weight_OI.t()) if need_x else None,
            product_in_graph(grad_NO.t(), x_NI.t()) if need_weight else None,
            grad_NO.sum(0) if need_bias else None,
        )


class Product(nn.Linear):
    """y = product(x) + bias. Names of its parameters are those of `nn.Linear`."""

    def product(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], without the bias."""
        return linear(x, self.weight)

    def matrix(self) -> Tensor:
        """[O, I], what `product` multiplies by."""
        return self.weight

    def offset(self) -> Tensor | None:
        """[O], what is added once to the product."""
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        y, offset = self.product(x), self.offset()
        return y if offset is None else y + offset.to(y.dtype)


def matrix_of(linear: nn.Linear) -> Tensor:
    """[O, I], what a linear map multiplies by now, for parts that work with the matrix itself."""
    return linear.matrix() if isinstance(linear, Product) else linear.weight
