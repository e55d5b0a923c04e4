"""A step of AdamW over a tensor in one pass; `kernel/adamw.py` has the equations."""

import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, rounded, wide

BLOCK = 1024
"""Numbers of a program."""


@triton.jit
def _step(
    weight_ptr,
    grad_ptr,
    mean_ptr,
    square_ptr,
    numbers_ptr,
    n,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    eps: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = places < n
    rate, shrink, root = tl.load(numbers_ptr), tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2)
    # A step that is left out (non-finite gradients) changes nothing, and nobody asked the device whether it is.
    taken = there & (tl.zeros([BLOCK], dtype=WIDE) + tl.load(numbers_ptr + 3) == 0)
    weight = tl.load(weight_ptr + places, mask=there, other=0.0).to(WIDE)
    grad = tl.load(grad_ptr + places, mask=there, other=0.0).to(WIDE)
    mean = tl.load(mean_ptr + places, mask=there, other=0.0).to(WIDE)
    square = tl.load(square_ptr + places, mask=there, other=0.0).to(WIDE)
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad * grad
    weight = shrink * weight - rate * mean / (tl.sqrt(square) / root + eps)
    tl.store(mean_ptr + places, rounded(mean, mean_ptr.dtype.element_ty), mask=taken)
    tl.store(square_ptr + places, rounded(square, square_ptr.dtype.element_ty), mask=taken)
    tl.store(weight_ptr + places, rounded(weight, weight_ptr.dtype.element_ty), mask=taken)


def step_(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, numbers: Tensor, beta1: float, beta2: float, eps: float
) -> None:
    """In place; all contiguous. `numbers`, float64 or float32 on the device: learning rate over the first bias correction, factor of
    decay, root of the second bias correction, and 0 where the step is taken."""
    n = weight.numel()
    if n:
        with on(weight):
            _step[(triton.cdiv(n, BLOCK),)](weight, grad, mean, square, numbers, n, beta1, beta2, eps, wide(weight.dtype), BLOCK)
