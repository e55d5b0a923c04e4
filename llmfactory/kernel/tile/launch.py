"""What all launches have in common."""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 1 << 16
"""Numbers of a row that a program may hold at once."""

INTERPRETED = bool(triton.knobs.runtime.interpret)
_INTERPRETED = tl.constexpr(INTERPRETED)


def wide(dtype: torch.dtype) -> tl.dtype:
    """What kernels compute in: float64 for float64, so that proofs can be exact, and float32 otherwise."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand(dtype: torch.dtype) -> tl.dtype:
    """What factors of a matrix product are in. The interpreter cannot multiply bfloat16 (Triton 3.9: it multiplies the bits)."""
    names = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}
    return wide(dtype) if INTERPRETED else names[dtype]


def precision(dtype: torch.dtype) -> str:
    """How float32 factors are multiplied: as PyTorch would, whole or in tf32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device, which must be that of their tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def power(number: int) -> int:
    """The least power of two that is not below."""
    return 1 << max(0, number - 1).bit_length()


def sums(x: Tensor, rows: int) -> int:
    """How many programs share out rows whose results are added up: each adds up its own in their order, then all are added up in
    theirs, so that the same device always gives the same bits."""
    most = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    return max(1, min(most, rows))


def warps(block: int) -> int:
    """Groups of 32 threads for a block of so many numbers."""
    return 16 if block >= 16384 else 8 if block >= 2048 else 4


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without an overflow, of which the interpreter would warn."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def rounded(x, FORMAT: tl.constexpr):
    """x in a format, each number the nearest one, ties to even, as hardware rounds. The interpreter (Triton 3.9) would cut off what
    bfloat16 has no digits for, so that all numbers are 0.3 % too small in the mean."""
    if _INTERPRETED and tl.bfloat16 == FORMAT and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) & -0x10000
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(FORMAT)
