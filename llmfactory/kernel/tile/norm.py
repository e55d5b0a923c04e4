"""RMSNorm and LayerNorm, forward and backward; `kernel/norm.py` has the equations.

Legend: N rows, D numbers of a row, P programs of the backward pass. A program of the forward pass takes ROWS rows at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.core.errors import UserError
from llmfactory.kernel.tile.launch import WIDEST, on, power, rounded, sums, warps, wide


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    gain_ptr,
    bias_ptr,
    mean_ptr,
    inverse_ptr,
    n,
    dim,
    eps: tl.constexpr,
    offset: tl.constexpr,
    CENTERED: tl.constexpr,
    GAIN: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    there, inside = rows < n, columns < dim
    places = rows[:, None] * dim + columns[None, :]
    both = there[:, None] & inside[None, :]
    x = tl.load(x_ptr + places, mask=both, other=0.0).to(WIDE)
    if CENTERED:
        mean = tl.sum(x, 1) / dim
        tl.store(mean_ptr + rows, mean, mask=there)
        x = tl.where(both, x - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / dim + eps)
    tl.store(inverse_ptr + rows, inverse, mask=there)
    y = x * inverse[:, None]
    if GAIN:
        y = y * (tl.load(gain_ptr + columns, mask=inside, other=0.0).to(WIDE) + offset)[None, :]
    if BIAS:
        y = y + tl.load(bias_ptr + columns, mask=inside, other=0.0).to(WIDE)[None, :]
    tl.store(y_ptr + places, rounded(y, y_ptr.dtype.element_ty), mask=both)


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    dx_ptr,
    gain_ptr,
    dgain_ptr,
    dbias_ptr,
    mean_ptr,
    inverse_ptr,
    n,
    dim,
    each,
    offset: tl.constexpr,
    CENTERED: tl.constexpr,
    GAIN: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    gain_sum = tl.zeros([BLOCK], dtype=WIDE)
    bias_sum = tl.zeros([BLOCK], dtype=WIDE)
    if GAIN:
        gain = tl.load(gain_ptr + columns, mask=inside, other=0.0).to(WIDE) + offset
    for start in range(0, each, ROWS):
        within = start + tl.arange(0, ROWS)
        rows = program * each + within
        there = (within < each) & (rows < n)
        places = rows[:, None] * dim + columns[None, :]
        both = there[:, None] & inside[None, :]
        x = tl.load(x_ptr + places, mask=both, other=0.0).to(WIDE)
        dy = tl.load(dy_ptr + places, mask=both, other=0.0).to(WIDE)
        inverse = tl.load(inverse_ptr + rows, mask=there, other=0.0)
        if CENTERED:
            x = x - tl.load(mean_ptr + rows, mask=there, other=0.0)[:, None]
        unit = x * inverse[:, None]
        if GAIN:
            gain_sum += tl.sum(dy * unit, 0)
        if BIAS:
            bias_sum += tl.sum(dy, 0)
        if GAIN:
            dy = dy * gain[None, :]
        dx = dy - unit * (tl.sum(dy * unit, 1) / dim)[:, None]
        if CENTERED:
            dx = dx - (tl.sum(dy, 1) / dim)[:, None]
        tl.store(dx_ptr + places, rounded(dx * inverse[:, None], dx_ptr.dtype.element_ty), mask=both)
    if GAIN:
        tl.store(dgain_ptr + program * dim + columns, gain_sum, mask=inside)
    if BIAS:
        tl.store(dbias_ptr + program * dim + columns, bias_sum, mask=inside)


def forward(
    x_ND: Tensor, gain_D: Tensor | None, bias_D: Tensor | None, eps: float, offset: float, centered: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Normalized rows, the means that were taken off (None: of RMSNorm) and the inverses that they were multiplied by, [N] each."""
    n, dim = x_ND.shape
    block, rows = _tile(dim)
    exact = torch.promote_types(x_ND.dtype, torch.float32)
    y_ND, inverse_N = torch.empty_like(x_ND), x_ND.new_empty(n, dtype=exact)
    mean_N = torch.empty_like(inverse_N) if centered else None
    if x_ND.numel():
        with on(x_ND):
            _forward[(triton.cdiv(n, rows),)](
                *(x_ND, y_ND, gain_D, bias_D, mean_N, inverse_N, n, dim),
                *(eps, offset, centered, gain_D is not None, bias_D is not None, wide(x_ND.dtype), rows, block),
                num_warps=warps(block),
            )
    return y_ND, mean_N, inverse_N


def backward(
    dy_ND: Tensor, x_ND: Tensor, gain_D: Tensor | None, mean_N: Tensor | None, inverse_N: Tensor, offset: float, biased: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to rows, gain and bias."""
    n, dim = x_ND.shape
    block, rows = _tile(dim)
    programs = sums(x_ND, n)
    dx_ND = torch.empty_like(x_ND)
    dgain_PD = None if gain_D is None else inverse_N.new_zeros(programs, dim)
    dbias_PD = inverse_N.new_zeros(programs, dim) if biased else None
    if x_ND.numel():
        with on(x_ND):
            _backward[(programs,)](
                *(dy_ND, x_ND, dx_ND, gain_D, dgain_PD, dbias_PD, mean_N, inverse_N, n, dim, triton.cdiv(n, programs)),
                *(offset, mean_N is not None, gain_D is not None, biased, wide(x_ND.dtype), rows, block),
                num_warps=warps(block),
            )
    return dx_ND, None if dgain_PD is None else dgain_PD.sum(0), None if dbias_PD is None else dbias_PD.sum(0)


def _tile(dim: int) -> tuple[int, int]:
    """Numbers of a row, rounded up, and rows that a program takes at once."""
    block = power(dim)
    if block > WIDEST:
        raise UserError(f"rows of {dim} numbers are too long for the norm in Triton ({WIDEST} at most): trainer.kernel=torch")
    return block, max(1, min(32, 2048 // block))
