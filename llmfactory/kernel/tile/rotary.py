"""Rotary positions; `kernel/rotary.py` has the equations. The gradient is the turn by the negative angle: the same kernel.

Legend: B rows, H heads, T tokens, D width of a head, of which the first `width` turn.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, power, rounded


@triton.jit
def _turn(
    x_ptr,
    y_ptr,
    cos_ptr,
    sin_ptr,
    x_row,
    x_head,
    x_token,
    x_column,
    y_row,
    y_head,
    y_token,
    y_column,
    table_row,
    table_token,
    n_heads,
    tokens,
    dim,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    SIGN: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row, token = (program // tokens).to(tl.int64), (program % tokens).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside, turning = columns < dim, columns < WIDTH
    partner = columns - columns % GROUP + (columns % GROUP + GROUP // 2) % GROUP
    table = row * table_row + token * table_token + columns
    cos = tl.load(cos_ptr + table, mask=turning, other=1.0)
    sin = tl.load(sin_ptr + table, mask=turning, other=0.0) * SIGN
    for start in range(0, n_heads, HEADS):
        heads = start + tl.arange(0, HEADS)
        there = (heads < n_heads)[:, None]
        x_places = row * x_row + token * x_token + heads[:, None] * x_head
        x = tl.load(x_ptr + x_places + columns[None, :] * x_column, mask=there & inside[None, :], other=0.0)
        other = tl.load(x_ptr + x_places + partner[None, :] * x_column, mask=there & turning[None, :], other=0.0)
        y = x.to(cos.dtype) * cos[None, :] + other.to(cos.dtype) * sin[None, :]
        y_places = row * y_row + token * y_token + heads[:, None] * y_head + columns[None, :] * y_column
        tl.store(y_ptr + y_places, rounded(y, y_ptr.dtype.element_ty), mask=there & inside[None, :])


def turn(x_BHTD: Tensor, cos_B1TW: Tensor, sin_B1TW: Tensor, group: int, back: bool) -> Tensor:
    """Turned by the tables' angles, or (`back`) by their negatives; laid out as `x_BHTD` is."""
    rows, n_heads, tokens, dim = x_BHTD.shape
    y_BHTD = torch.empty_like(x_BHTD)
    if x_BHTD.numel():
        width = cos_B1TW.shape[3]
        block = power(dim)
        heads = max(1, min(power(n_heads), 2048 // block))
        by_row = 0 if cos_B1TW.shape[0] == 1 else tokens * width  # one table may serve all rows
        with on(x_BHTD):
            _turn[(rows * tokens,)](
                *(x_BHTD, y_BHTD, cos_B1TW.contiguous(), sin_B1TW.contiguous()),
                *(*x_BHTD.stride(), *y_BHTD.stride(), by_row, width, n_heads, tokens, dim),
                *(width, group, -1.0 if back else 1.0, heads, block),
            )
    return y_BHTD
