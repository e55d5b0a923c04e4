"""x W^T, and its gradient dy W, where W is stored in few bits; `kernel/quantized_linear.py` has the formats.

W exists tile by tile, in registers: each program makes the numbers of a tile out of their codes right before it multiplies by them,
in the wide format and then rounded to that of x, as PyTorch's way rounds its slabs.

Legend: N rows, O outputs, I inputs. Tiles of W are [OUT, IN], whichever of the two is summed over.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, operand, precision, rounded, wide
from llmfactory.kernel.tile.matmul import TILE


@triton.jit
def _weights(
    codes_ptr,
    scales_ptr,
    book_ptr,
    outs,
    ins,
    outputs,
    inputs,
    bytes_of_row,
    blocks_of_row,
    NF4: tl.constexpr,
    SHARE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of the matrix [outs, ins], 0 outside of it."""
    both = (outs < outputs)[:, None] & (ins < inputs)[None, :]
    if NF4:
        pairs = tl.load(codes_ptr + outs[:, None] * bytes_of_row + (ins // 2)[None, :], mask=both, other=0).to(tl.int32)
        codes = tl.where((ins % 2 == 0)[None, :], pairs >> 4, pairs & 15)  # the first one stands high
        scales = tl.load(scales_ptr + outs[:, None] * blocks_of_row + (ins // SHARE)[None, :], mask=both, other=0.0)
        weight = tl.load(book_ptr + codes).to(WIDE) * scales.to(WIDE)
    else:
        codes = tl.load(codes_ptr + outs[:, None] * bytes_of_row + ins[None, :], mask=both, other=0)
        weight = codes.to(WIDE) * tl.load(scales_ptr + outs, mask=outs < outputs, other=0.0).to(WIDE)[:, None]
    return weight


@triton.jit
def _product(
    x_ptr,
    y_ptr,
    codes_ptr,
    scales_ptr,
    book_ptr,
    n,
    outputs,
    inputs,
    bytes_of_row,
    blocks_of_row,
    BACK: tl.constexpr,
    NF4: tl.constexpr,
    SHARE: tl.constexpr,
    FACTOR: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    if BACK:
        width, inner = inputs, outputs
    else:
        width, inner = outputs, inputs
    total = tl.zeros([ROWS, COLUMNS], dtype=WIDE)
    for start in range(0, inner, INNER):
        depth = start + tl.arange(0, INNER)
        there = (rows < n)[:, None] & (depth < inner)[None, :]
        x = tl.load(x_ptr + rows[:, None] * inner + depth[None, :], mask=there, other=0.0)
        if BACK:
            outs, ins = depth, columns
        else:
            outs, ins = columns, depth
        weight = _weights(
            codes_ptr, scales_ptr, book_ptr, outs, ins, outputs, inputs, bytes_of_row, blocks_of_row, NF4, SHARE, WIDE
        )
        weight = rounded(weight, x.dtype).to(FACTOR)
        if not BACK:
            weight = tl.trans(weight)
        total += tl.dot(x.to(FACTOR), weight, input_precision=PRECISION, out_dtype=WIDE)
    both = (rows < n)[:, None] & (columns < width)[None, :]
    tl.store(y_ptr + rows[:, None] * width + columns[None, :], rounded(total, y_ptr.dtype.element_ty), mask=both)


def product(x: Tensor, codes: Tensor, scales: Tensor, book: Tensor | None, inputs: int, share: int, back: bool) -> Tensor:
    """[N, I] -> [N, O], or (`back`) [N, O] -> [N, I]. `book`: the numbers of four bits, each block of `share` of which has a scale
    [O, S]; None: codes are bytes with a scale [O] of their row."""
    n, outputs = len(x), len(codes)
    width = inputs if back else outputs
    y = x.new_empty(n, width)
    if y.numel():
        rows, columns, inner = TILE
        blocks = scales.shape[1] if scales.dim() == 2 else 1
        with on(x):
            _product[(triton.cdiv(n, rows), triton.cdiv(width, columns))](
                *(x, y, codes, scales, book, n, outputs, inputs, codes.shape[1], blocks),
                *(back, book is not None, share, operand(x.dtype), wide(x.dtype), precision(x.dtype), rows, columns, inner),
            )
    return y


def code_book(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of four bits on the device."""
    return torch.tensor(numbers, dtype=torch.promote_types(dtype, torch.float32), device=device)
