"""Cross-entropy of rows of logits, which become their own gradients; `kernel/cross_entropy.py` has the equations.

Two passes over a row: the first keeps a running maximum and rescales the running sum of exponentials where it grows (Milakov and
Gimelshein 2018, algorithm 3), the second writes the gradient where the logits stood.

Legend: N rows, V logits of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfactory.kernel.tile.launch import on, power, rounded, sigmoid, wide

BLOCK = 4096
"""Logits that a program holds at once."""


@triton.jit
def _capped(x, softcap: tl.constexpr):
    """softcap * tanh(x / softcap), and the tanh."""
    tanh = 2 * sigmoid(2 * x / softcap) - 1
    return softcap * tanh, tanh


@triton.jit
def _rows(
    logits_ptr,
    target_ptr,
    loss_ptr,
    stride,
    vocab,
    smoothing: tl.constexpr,
    uniform: tl.constexpr,
    softcap: tl.constexpr,
    z: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    target = tl.load(target_ptr + row)
    own = tl.load(logits_ptr + target).to(WIDE)
    if softcap is not None:
        own, _own_tanh = _capped(own, softcap)
    largest = tl.zeros([BLOCK], dtype=WIDE) - float("inf")
    shares = tl.zeros([BLOCK], dtype=WIDE)
    total = tl.zeros([BLOCK], dtype=WIDE)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab
        x = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(WIDE)
        if softcap is not None:
            x, tanh = _capped(x, softcap)
        if smoothing > 0:
            total += tl.where(inside, x, 0.0)
        x = tl.where(inside, x, -float("inf"))
        larger = tl.maximum(largest, x)
        finite = tl.where(larger > -float("inf"), larger, 0.0)
        shares = shares * tl.exp(largest - finite) + tl.exp(x - finite)
        largest = larger
    top = tl.max(largest, 0)
    normalizer = top + tl.log(tl.sum(shares * tl.exp(largest - top), 0))
    loss = normalizer - (1 - smoothing) * own
    if smoothing > 0:
        loss -= uniform * tl.sum(total, 0)
    if z > 0:
        loss += z * normalizer * normalizer
    tl.store(loss_ptr + row, loss)
    if GRADIENT:
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocab
            x = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(WIDE)
            tanh = x
            if softcap is not None:
                x, tanh = _capped(x, softcap)
            slope = tl.exp(x - normalizer)
            if z > 0:
                slope = slope * (1 + 2 * z * normalizer)
            if smoothing > 0:
                slope = slope - uniform
            slope = tl.where(columns == target, slope - (1 - smoothing), slope)
            if softcap is not None:
                slope = slope * (1 - tanh * tanh)
            tl.store(logits_ptr + columns, rounded(slope, logits_ptr.dtype.element_ty), mask=inside)


def losses_(
    logits_NV: Tensor, target_N: Tensor, smoothing: float, softcap: float | None, z: float, gradient: bool = True
) -> Tensor:
    """The loss of each row; with `gradient`, the logits are overwritten by its gradient with respect to them. Rows are contiguous
    each."""
    n, vocab = logits_NV.shape
    loss_N = logits_NV.new_empty(n, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    if n:
        block = min(BLOCK, power(vocab))
        with on(logits_NV):
            _rows[(n,)](
                *(logits_NV, target_N, loss_N, logits_NV.stride(0), vocab),
                *(smoothing, smoothing / vocab, softcap, z, gradient, wide(logits_NV.dtype), block),
                num_warps=8 if block >= 2048 else 4,
            )
    return loss_N
