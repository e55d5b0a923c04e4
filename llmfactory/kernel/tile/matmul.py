"""The first lesson: a matrix product by tiles. docs/kernels.md walks through it; `kernel/tile/grouped.py` is the same for groups.

C = A B^T. Each program makes one tile [ROWS, OUT] of C: it goes along the inner dimension in steps of INNER, loads a tile of A and one
of B, and adds their product to a sum that stays in registers. So every number of A is read from memory O / OUT times instead of O
times.

Programs that run at the same time should share what they read. Numbered row by row, neighbours share tiles of A only; numbered in
bands of BAND rows of tiles, a square of tiles is in work at a time, and both A and B come from the cache.

Legend: N rows, O outputs, I inner dimension.
"""

import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import INTERPRETED, on, operand, precision, rounded, wide

TILE = (16, 16, 16) if INTERPRETED else (64, 64, 32)
"""ROWS, OUT, INNER."""
BAND = 8
"""Rows of tiles that are worked on side by side."""


@triton.jit
def place(program, row_tiles, column_tiles, BAND: tl.constexpr):
    """Row and column of a program's tile."""
    band = program // (BAND * column_tiles)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    within = program % (BAND * column_tiles)
    return band * BAND + within % height, within // height


@triton.jit
def _product(
    a_ptr,
    b_ptr,
    c_ptr,
    n,
    outputs,
    inner,
    a_row,
    a_column,
    b_row,
    b_column,
    FACTOR: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
    BAND: tl.constexpr,
):
    row_tile, column_tile = place(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(outputs, OUT), BAND)
    rows = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = column_tile.to(tl.int64) * OUT + tl.arange(0, OUT)
    total = tl.zeros([ROWS, OUT], dtype=WIDE)
    for start in range(0, inner, INNER):
        depth = start + tl.arange(0, INNER)
        a_there = (rows < n)[:, None] & (depth < inner)[None, :]
        b_there = (columns < outputs)[:, None] & (depth < inner)[None, :]
        a = tl.load(a_ptr + rows[:, None] * a_row + depth[None, :] * a_column, mask=a_there, other=0.0).to(FACTOR)
        b = tl.load(b_ptr + columns[:, None] * b_row + depth[None, :] * b_column, mask=b_there, other=0.0).to(FACTOR)
        total += tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=WIDE)
    there = (rows < n)[:, None] & (columns < outputs)[None, :]
    tl.store(c_ptr + rows[:, None] * outputs + columns[None, :], rounded(total, c_ptr.dtype.element_ty), mask=there)


def product(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    """[N, I], [O, I] -> [N, O]; transposed views are as good as contiguous ones."""
    (n, inner), outputs = a_NI.shape, b_OI.shape[0]
    c_NO = a_NI.new_empty(n, outputs)
    if c_NO.numel():
        with on(a_NI):
            _product[(triton.cdiv(n, TILE[0]) * triton.cdiv(outputs, TILE[1]),)](
                *(a_NI, b_OI, c_NO, n, outputs, inner, *a_NI.stride(), *b_OI.stride()),
                *(operand(a_NI.dtype), wide(a_NI.dtype), precision(a_NI.dtype), *TILE, BAND),
            )
    return c_NO
