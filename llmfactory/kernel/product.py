"""x @ weight.T of whole matrices, by whoever is fastest at it.

In float32 on a CPU that is oneDNN: it uses the processor's widest registers whoever made it, which MKL, torch's own choice, does on
Intel's only (512 x 256 x 512 on an EPYC: 233 GFLOP/s against 109). It generates code for each new shape, which small products do
not pay back.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 2**24
"""Multiply-adds of a product from which on oneDNN is faster, code for a new shape and all (measured: 1.0 to 1.5 x)."""


def product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """[N, I], [O, I] -> [N, O], in full precision; without gradient."""
    if one_dnn_serves(x_NI, x_NI.numel() * weight_OI.shape[0]):
        # It copies an `x_NI` that is turned over, so the smaller copies are made: of that, or of the other factor and the result.
        if not x_NI.is_contiguous() and weight_OI.numel() + x_NI.shape[0] * weight_OI.shape[0] < x_NI.numel():
            return _one_dnn(weight_OI, x_NI).t().contiguous()
        return _one_dnn(x_NI, weight_OI)
    return x_NI @ weight_OI.T


def _one_dnn(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    # Copies are made here, so that they are seen by who counts memory.
    return torch.ops.mkldnn._linear_pointwise(x_NI.contiguous(), _whole(weight_OI), None, "none", [], "")  # type: ignore[no-any-return]


def _whole(weight_OI: Tensor) -> Tensor:
    """A matrix with nothing between its rows, or between its columns where it is turned over: for one that is cut out of wider rows
    oneDNN has plain loops only, a thousand times as slow as the copy."""
    if weight_OI.stride(0) < weight_OI.stride(1):
        return weight_OI.t().contiguous().t()
    return weight_OI.contiguous()


@torch.library.custom_op("llmfactory::product", mutates_args=())
def opaque_product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`product`, which a compiler calls as it is: for large ones, with which nothing is to be fused."""
    return product(x_NI, weight_OI)


@opaque_product.register_fake
def _(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], weight_OI.shape[0])


def product_in_graph(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`product` for functions that a compiler may look into: it would give large ones in float32 to torch's own."""
    size, whole = x_NI.numel() * weight_OI.shape[0], x_NI.dtype is torch.float32 and x_NI.device.type == "cpu"
    if torch.compiler.is_compiling() and whole and size >= LARGE:
        return opaque_product(x_NI, weight_OI)  # type: ignore[no-any-return]
    return product(x_NI, weight_OI)


def one_dnn_serves(x: Tensor, size: int) -> bool:
    """Whether oneDNN takes a product of so many multiply-adds. A compiler is better off with torch's own, which it may fuse."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype is not torch.float32 or size < LARGE:
        return False
    return torch.backends.mkldnn.is_available()  # type: ignore[no-any-return,no-untyped-call]
