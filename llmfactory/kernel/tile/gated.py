"""activation(gate) * up, forward and backward; `kernel/gated.py` has the equations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, rounded, sigmoid, wide

BLOCK = 1024
"""Numbers of a program."""
# A constant stands on the right: on the left, the interpreter would take the product for a constant too.
_ROOT_HALF = tl.constexpr(0.7071067811865476)
_ROOT_TWO_PI = tl.constexpr(2.5066282746310002)
_ROOT_EIGHT_OVER_PI = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)
_QUICK = tl.constexpr(1.702)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    """The activation, and its derivative."""
    if ACTIVATION == "silu":
        s = sigmoid(x)
        y, slope = x * s, s * (1 + x * (1 - s))
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(x * _ROOT_HALF))
        y, slope = x * below, below + x * tl.exp(-0.5 * x * x) / _ROOT_TWO_PI
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 is the sigmoid of 2 u
        s = sigmoid((x + x * x * x * _CUBIC) * _ROOT_EIGHT_OVER_PI)
        y, slope = x * s, s * (1 + x * (1 - s) * _ROOT_EIGHT_OVER_PI * (1 + x * x * (3 * _CUBIC)))
    elif ACTIVATION == "quick_gelu":
        s = sigmoid(x * _QUICK)
        y, slope = x * s, s * (1 + x * _QUICK * (1 - s))
    elif ACTIVATION == "relu":
        y, slope = tl.maximum(x, 0.0), tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "relu2":
        y, slope = tl.maximum(x, 0.0) * tl.maximum(x, 0.0), 2 * tl.maximum(x, 0.0)
    else:
        tl.static_assert(ACTIVATION == "tanh")
        s = sigmoid(2 * x)
        y, slope = 2 * s - 1, 4 * s * (1 - s)
    return y, slope


@triton.jit
def _forward(gate_ptr, up_ptr, y_ptr, n, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = places < n
    gate = tl.load(gate_ptr + places, mask=there, other=0.0).to(WIDE)
    up = tl.load(up_ptr + places, mask=there, other=0.0).to(WIDE)
    y, _ = _activated(gate, ACTIVATION)
    tl.store(y_ptr + places, rounded(y * up, y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _backward(dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, n, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = places < n
    dy = tl.load(dy_ptr + places, mask=there, other=0.0).to(WIDE)
    gate = tl.load(gate_ptr + places, mask=there, other=0.0).to(WIDE)
    up = tl.load(up_ptr + places, mask=there, other=0.0).to(WIDE)
    y, slope = _activated(gate, ACTIVATION)
    tl.store(dgate_ptr + places, rounded(dy * up * slope, dgate_ptr.dtype.element_ty), mask=there)
    tl.store(dup_ptr + places, rounded(dy * y, dup_ptr.dtype.element_ty), mask=there)


def forward(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Both contiguous and of one shape."""
    y, n = torch.empty_like(gate), gate.numel()
    if n:
        with on(gate):
            _forward[(triton.cdiv(n, BLOCK),)](gate, up, y, n, activation, wide(gate.dtype), BLOCK)
    return y


def backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradients with respect to gate and up."""
    dgate, dup, n = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    if n:
        with on(gate):
            _backward[(triton.cdiv(n, BLOCK),)](dy, gate, up, dgate, dup, n, activation, wide(gate.dtype), BLOCK)
    return dgate, dup
