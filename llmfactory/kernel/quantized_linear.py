"""Linear maps whose matrix is stored in 4 or 8 bits and does not learn (Dettmers et al. 2023; Dettmers et al. 2022).

NF4 (2023, section 3 and appendix E): each block of 64 neighbours in a row is divided by its largest magnitude; what is left is
rounded to one of 16 numbers, the quantiles of a normal distribution. Double quantization: the magnitudes themselves are stored as
8-bit floats, less their mean and divided by their largest deviation, in groups of 256. Together 0.516 bytes a number.

int8 (2022, section 2.1): each row is divided by its largest magnitude / 127 and rounded.

y = x W^T, with W made anew, some rows at a time, in the forward and again in the backward pass, which gives x its gradient only: W
never stands whole in full precision.

Shapes: O outputs, I inputs, S blocks of a row (the last may be short), N rows of x, G groups of scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way
from llmfactory.kernel.product import product

CODE_BOOK = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 numbers of NF4 (Dettmers et al. 2023, appendix E)."""
BLOCK, GROUP = 64, 256
"""Numbers that share a scale, and scales that share a range."""
ELEMENTS = 1 << 20
"""Numbers of a matrix that are in full precision at once."""
_EIGHT_BITS = torch.float8_e4m3fn
_LARGEST = 448.0
"""Of the 8-bit floats."""

Packed = tuple[Tensor, ...]
"""A matrix in few bits. NF4: codes [O, I / 2] uint8 (two in a byte, the first one high), scales [O, S], and, if those are 8-bit floats
(as uint8), ranges [G, 2] float32, mean and largest deviation of each group. int8: codes [O, I] and scales [O], float32."""


def rows(packed: Packed, width: int) -> Iterator[slice]:
    """Rows that are in full precision at once."""
    count, step = packed[0].shape[0], max(1, ELEMENTS // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


# ---- NF4


def nf4(weight_OI: Tensor, double: bool = True) -> Packed:
    """Quantize a matrix; `double`: its scales too."""
    width = weight_OI.shape[1]
    blocks, middles = -(-width // BLOCK), _middles(weight_OI.device)
    codes = weight_OI.new_empty(len(weight_OI), -(-width // 2), dtype=torch.uint8)
    scales = weight_OI.new_empty(len(weight_OI), blocks, dtype=torch.float32)
    for chosen in rows((codes,), width):
        padded = F.pad(weight_OI[chosen].float(), (0, blocks * BLOCK - width)).unflatten(1, (blocks, BLOCK))  # type: ignore[no-untyped-call]
        scales[chosen] = largest = padded.abs().amax(2)
        near = torch.bucketize(padded / largest.where(largest > 0, 1.0)[..., None], middles, out_int32=True)
        pairs = near.flatten(1)[:, : 2 * codes.shape[1]].to(torch.uint8).unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
        codes[chosen] = pairs[..., 0] << 4 | pairs[..., 1]
    return (codes, *_eight_bit_scales(scales)) if double else (codes, scales)


def _middles(device: torch.device) -> Tensor:
    book = torch.tensor(CODE_BOOK, device=device)
    return (book[1:] + book[:-1]) / 2


def _eight_bit_scales(scales_OS: Tensor) -> tuple[Tensor, Tensor]:
    flat = scales_OS.flatten()
    groups = -(-len(flat) // GROUP)
    filled = F.pad(flat[None], (0, groups * GROUP - len(flat)), mode="replicate")[0].view(groups, GROUP)
    mean = filled.mean(1)
    away = filled - mean[:, None]
    largest = away.abs().amax(1)
    eight = (away * (_LARGEST / largest.where(largest > 0, 1.0))[:, None]).clamp(-_LARGEST, _LARGEST).to(_EIGHT_BITS)
    return eight.view(torch.uint8).flatten()[: len(flat)].view_as(scales_OS), torch.stack((mean, largest), 1)


def nf4_scales(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """[O, S], of each block."""
    _, scales_OS, *ranges = packed
    if not ranges:
        return scales_OS.to(dtype)
    flat = scales_OS.flatten().view(_EIGHT_BITS).to(dtype)
    mean, largest = ranges[0].to(dtype).repeat_interleave(GROUP, 0)[: len(flat)].unbind(1)
    return torch.addcmul(mean, flat, largest / _LARGEST).view(scales_OS.shape)


def nf4_weight(packed: Packed, width: int, chosen: slice, scales_OS: Tensor) -> Tensor:
    """Rows of the matrix, in the format of `nf4_scales`."""
    book = torch.tensor(CODE_BOOK, dtype=scales_OS.dtype, device=scales_OS.device)
    both = torch.stack((book.repeat_interleave(16), book.repeat(16)), 1)  # of a byte's two codes at once
    numbers = F.embedding(packed[0][chosen].int(), both).flatten(1)
    scales = scales_OS[chosen]
    whole = width // BLOCK * BLOCK
    if whole == numbers.shape[1]:
        return numbers.unflatten(1, (-1, BLOCK)).mul_(scales[..., None]).flatten(1)  # type: ignore[no-untyped-call,no-any-return]
    return numbers[:, :width] * scales.repeat_interleave(BLOCK, 1)[:, :width]


# ---- int8


def int8(weight_OI: Tensor) -> Packed:
    """Quantize a matrix."""
    largest = weight_OI.abs().amax(1).float()
    scales = largest.where(largest > 0, 1.0) / 127
    codes = weight_OI.new_empty(weight_OI.shape, dtype=torch.int8)
    for chosen in rows((codes,), weight_OI.shape[1]):
        codes[chosen] = (weight_OI[chosen].float() / scales[chosen, None]).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales


# ---- both


def weight_of(packed: Packed, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The whole matrix [O, I]: the plain reference, and what a merged model has."""
    return torch.cat([piece for _, piece in pieces(packed, width, dtype)])


def pieces(packed: Packed, width: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix, one slab after the other."""
    wide = torch.promote_types(dtype, torch.float32)
    if packed[0].dtype is torch.int8:
        for chosen in rows(packed, width):
            yield chosen, (packed[0][chosen].to(wide) * packed[1][chosen, None].to(wide)).to(dtype)
        return
    scales = nf4_scales(packed, wide)
    for chosen in rows(packed, width):
        yield chosen, nf4_weight(packed, width, chosen, scales).to(dtype)


# The compiler cannot look into 8-bit floats on every device.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def quantized_linear(x: Tensor, packed: Packed, kernel: Kernel = Kernel.torch) -> Tensor:
    """[..., I] -> [..., O], in autocast's dtype where autocast is on, as of any linear map."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    # Of many rows, making a slab of W and multiplying by it with BLAS costs less than making its tiles anew for each tile of rows.
    by_tile = way(kernel, x, fused_in_torch=True) is Kernel.triton
    y_NO = (_InTriton if by_tile else _Linear).apply(x.reshape(-1, x.shape[-1]), *packed)  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(*packed)
        ctx.width = x_NI.shape[1]
        y_NO = x_NI.new_empty(len(x_NI), packed[0].shape[0])
        for chosen, weight in pieces(packed, ctx.width, x_NI.dtype):
            y_NO[:, chosen] = product(x_NI, weight)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        packed: Sequence[Tensor] = ctx.saved_tensors
        grad_x: Tensor | None = None
        for chosen, weight in pieces(tuple(packed), ctx.width, grad_NO.dtype):
            part = product(grad_NO[:, chosen].contiguous(), weight.T)
            grad_x = part if grad_x is None else grad_x.add_(part)
        return (grad_x, *[None] * len(packed))


class _InTriton(torch.autograd.Function):
    """W exists in tiles only, in registers."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(*packed)
        ctx.width = x_NI.shape[1]
        return _by_tiles(x_NI.contiguous(), packed, ctx.width, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        packed: Packed = tuple(ctx.saved_tensors)
        return (_by_tiles(grad_NO.contiguous(), packed, ctx.width, back=True), *[None] * len(packed))


def _by_tiles(x: Tensor, packed: Packed, width: int, back: bool) -> Tensor:
    from llmfactory.kernel.tile import quantized

    if packed[0].dtype is torch.int8:
        return quantized.product(x, packed[0], packed[1], None, width, BLOCK, back)
    book = quantized.code_book(CODE_BOOK, x.dtype, x.device)
    return quantized.product(x, packed[0], nf4_scales(packed, book.dtype), book, width, BLOCK, back)
