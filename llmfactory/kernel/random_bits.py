"""Random bits as a function of a key and of the number of an element, so that every process and every resumed run draws the same
for the same element, whichever piece of a tensor it holds and in which order pieces are worked through.

    bits(i) = mix(mix(i xor k_1) + k_2),   mix: the finalizer of MurmurHash3 for 32 bits (Appleby 2011), which maps the 32-bit numbers
                                           one to one and scatters neighbours

`k_1` and `k_2` are the two halves of the key. Multiplication and addition wrap around at 32 bits, as in the original.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, SECOND = 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)
"""MurmurHash3's factors, as signed 32-bit numbers."""


def random_bits(index: Tensor, key: int | Tensor) -> Tensor:
    """32 random bits as int32 for each number of an int32 tensor. `key`: up to 62 bits, or a tensor of one int64 with them."""
    low, high = key & 0x7FFFFFFF, key >> 31
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        low, high = low.to(torch.int32), high.to(torch.int32)
    x = mixed(index ^ low)
    return mixed(x.add_(high))


def mixed(x: Tensor) -> Tensor:
    """The finalizer, in place."""
    x ^= _shifted(x, 16)
    x *= FIRST
    x ^= _shifted(x, 13)
    x *= SECOND
    x ^= _shifted(x, 16)
    return x


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (x >> by).bitwise_and_((1 << (32 - by)) - 1)


def numbers_of(offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """[*sizes] int32, the numbers (modulo 2^32) in the whole tensor [*shape] of the elements of a box of it."""
    found = torch.zeros((), dtype=torch.int64, device=device)
    stride = 1
    for offset, size, whole in zip(reversed(offsets), reversed(sizes), reversed(shape), strict=True):
        # From the last dimension on, each one before it stands to the left of what there is.
        along = torch.arange(offset, offset + size, device=device) * stride
        found = along.view(-1, *[1] * found.dim()) + found
        stride *= whole
    return found.to(torch.int32)
