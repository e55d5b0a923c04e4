"""Rows times the matrix of their group, and what a mixture of experts needs around it; `kernel/grouped_linear.py` has the equations.

A tile of rows must not straddle two groups. Each group gets as many tiles as its rows need; where the tiles of each begin is computed
on the device, so that nobody waits for the numbers of rows, and as many programs are started as there could be tiles at most: those
that find none have nothing to do.

Legend: N rows sorted by group, G groups, I and O widths, S places of rows, T tokens, k visits of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, operand, power, precision, rounded, wide
from llmfactory.kernel.tile.matmul import TILE


@triton.jit
def _rows(
    x_ptr,
    weight_ptr,
    y_ptr,
    ends_ptr,
    tiles_ptr,
    groups,
    outputs,
    inner,
    weight_group,
    weight_out,
    weight_in,
    FACTOR: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
    GROUPS: tl.constexpr,
):
    tile = tl.program_id(0)
    numbers = tl.arange(0, GROUPS)
    tile_ends = tl.load(tiles_ptr + numbers, mask=numbers < groups, other=2147483647)
    group = tl.sum((tile_ends <= tile).to(tl.int32), 0)  # groups whose tiles all lie before
    if group < groups:
        before = tl.load(tiles_ptr + group - 1, mask=group > 0, other=0)
        first = tl.load(ends_ptr + group - 1, mask=group > 0, other=0)
        last = tl.load(ends_ptr + group)
        rows = first.to(tl.int64) + (tile - before) * ROWS + tl.arange(0, ROWS)
        columns = tl.program_id(1).to(tl.int64) * OUT + tl.arange(0, OUT)
        there, inside = rows < last, columns < outputs
        weight_ptr += group.to(tl.int64) * weight_group
        total = tl.zeros([ROWS, OUT], dtype=WIDE)
        for start in range(0, inner, INNER):
            depth = start + tl.arange(0, INNER)
            left = depth < inner
            x = tl.load(x_ptr + rows[:, None] * inner + depth[None, :], mask=there[:, None] & left[None, :], other=0.0)
            weight_places = columns[:, None] * weight_out + depth[None, :] * weight_in
            weight = tl.load(weight_ptr + weight_places, mask=inside[:, None] & left[None, :], other=0.0)
            total += tl.dot(x.to(FACTOR), tl.trans(weight.to(FACTOR)), input_precision=PRECISION, out_dtype=WIDE)
        y_places = rows[:, None] * outputs + columns[None, :]
        tl.store(y_ptr + y_places, rounded(total, y_ptr.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def _weights(
    dy_ptr,
    x_ptr,
    dweight_ptr,
    ends_ptr,
    outputs,
    inner,
    FACTOR: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
):
    group = tl.program_id(2)
    first = tl.load(ends_ptr + group - 1, mask=group > 0, other=0)
    last = tl.load(ends_ptr + group)
    outs = tl.program_id(0).to(tl.int64) * OUT + tl.arange(0, OUT)
    ins = tl.program_id(1).to(tl.int64) * IN + tl.arange(0, IN)
    total = tl.zeros([OUT, IN], dtype=WIDE)
    for start in range(first, last, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        there = (rows < last)[:, None]
        dy = tl.load(dy_ptr + rows[:, None] * outputs + outs[None, :], mask=there & (outs < outputs)[None, :], other=0.0)
        x = tl.load(x_ptr + rows[:, None] * inner + ins[None, :], mask=there & (ins < inner)[None, :], other=0.0)
        total += tl.dot(tl.trans(dy.to(FACTOR)), x.to(FACTOR), input_precision=PRECISION, out_dtype=WIDE)
    places = group.to(tl.int64) * outputs * inner + outs[:, None] * inner + ins[None, :]
    both = (outs < outputs)[:, None] & (ins < inner)[None, :]
    tl.store(dweight_ptr + places, rounded(total, dweight_ptr.dtype.element_ty), mask=both)


@triton.jit
def _gather(x_ptr, y_ptr, places_ptr, dim, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < dim
    place = tl.load(places_ptr + row) // SHARED
    tl.store(y_ptr + row * dim + columns, tl.load(x_ptr + place * dim + columns, mask=inside), mask=inside)


@triton.jit
def _add(x_ptr, y_ptr, places_ptr, dim, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < dim
    total = tl.zeros([BLOCK], dtype=WIDE)
    for visit in range(SHARED):
        place = tl.load(places_ptr + row * SHARED + visit)
        total += tl.load(x_ptr + place * dim + columns, mask=inside, other=0.0).to(WIDE)
    tl.store(y_ptr + row * dim + columns, rounded(total, y_ptr.dtype.element_ty), mask=inside)


def rows(x_NI: Tensor, weight_GOI: Tensor, ends_G: Tensor) -> Tensor:
    """[N, O]; the stack of matrices may be a transposed view. `ends_G`: int32, the row after the last one of each group."""
    (n, inner), (groups, outputs, _) = x_NI.shape, weight_GOI.shape
    y_NO = x_NI.new_empty(n, outputs)
    if y_NO.numel():
        height, out, depth = TILE
        counts_G = ends_G.diff(prepend=ends_G.new_zeros(1))
        tiles_G = ((counts_G + height - 1) // height).cumsum(0, dtype=torch.int32)
        most = triton.cdiv(n, height) + min(groups, n)
        with on(x_NI):
            _rows[(most, triton.cdiv(outputs, out))](
                *(x_NI, weight_GOI, y_NO, ends_G, tiles_G, groups, outputs, inner, *weight_GOI.stride()),
                *(operand(x_NI.dtype), wide(x_NI.dtype), precision(x_NI.dtype), height, out, depth, power(groups)),
            )
    return y_NO


def weights(dy_NO: Tensor, x_NI: Tensor, ends_G: Tensor) -> Tensor:
    """[G, O, I], the gradient with respect to the matrices: of each group, the sum over its rows of dy x^T, in their order."""
    outputs, inner, groups = dy_NO.shape[1], x_NI.shape[1], len(ends_G)
    dweight_GOI = x_NI.new_empty(groups, outputs, inner)
    if dweight_GOI.numel():
        height, out, depth = TILE
        with on(x_NI):
            _weights[(triton.cdiv(outputs, height), triton.cdiv(inner, out), groups)](
                *(dy_NO, x_NI, dweight_GOI, ends_G, outputs, inner),
                *(operand(x_NI.dtype), wide(x_NI.dtype), precision(x_NI.dtype), height, out, depth),
            )
    return dweight_GOI


def gather(x_SD: Tensor, places_N: Tensor, shared: int = 1) -> Tensor:
    """[N, D], row n that of place // shared."""
    dim = x_SD.shape[1]
    y_ND = x_SD.new_empty(len(places_N), dim)
    if y_ND.numel():
        block = min(1024, power(dim))
        with on(x_SD):
            _gather[(len(places_N), triton.cdiv(dim, block))](x_SD, y_ND, places_N, dim, shared, block)
    return y_ND


def add(x_ND: Tensor, places_N: Tensor, shared: int) -> Tensor:
    """[N / shared, D], row t the sum of the rows at places [t shared, (t + 1) shared), in this order."""
    dim = x_ND.shape[1]
    y_TD = x_ND.new_empty(len(places_N) // shared, dim)
    if y_TD.numel():
        block = min(1024, power(dim))
        with on(x_ND):
            _add[(len(y_TD), triton.cdiv(dim, block))](x_ND, y_TD, places_N, dim, shared, wide(x_ND.dtype), block)
    return y_TD
