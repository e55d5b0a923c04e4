"""Random bits against the same arithmetic on Python's whole numbers, and what they are wanted for: no element's bits depend on the cut."""

from __future__ import annotations

import pytest
import torch

from llmfactory.kernel.random_bits import numbers_of, random_bits

WORD = 0xFFFFFFFF


def plain_mix(x: int) -> int:
    """MurmurHash3's 32-bit finalizer."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & WORD
    x ^= x >> 13
    x = x * 0xC2B2AE35 & WORD
    return x ^ x >> 16


def plain_bits(index: int, key: int) -> int:
    low, high = key & 0x7FFFFFFF, key >> 31
    return plain_mix((plain_mix((index & WORD) ^ low) + high) & WORD)


KEYS = [0, 1, 2**31 - 1, 2**31, 2**56 - 12345, 2**62 - 1]


@pytest.mark.parametrize("key", KEYS)
def test_equals_the_plain_arithmetic(key: int) -> None:
    index = torch.tensor([0, 1, 2, 77, 2**31 - 1, -1, -(2**31)], dtype=torch.int32)
    expected = [plain_bits(int(i), key) for i in index]
    for given in (key, torch.tensor(key)):
        assert [int(bits) & WORD for bits in random_bits(index, given)] == expected
    assert index[0] == 0, "what is given stays"


def test_each_bit_is_set_half_of_the_time_and_for_itself() -> None:
    bits = random_bits(torch.arange(2**16, dtype=torch.int32), 123456789012345)
    ones = ((bits[:, None] >> torch.arange(32)) & 1).double()
    assert (ones.mean(0) - 0.5).abs().max() < 5 * 0.5 / 2**8
    together = torch.corrcoef(ones.T) - torch.eye(32)
    assert together.abs().max() < 6 / 2**8
    neighbours = (ones[1:] * 2 - 1) * (ones[:-1] * 2 - 1)
    assert neighbours.mean(0).abs().max() < 6 / 2**8


def test_keys_draw_other_bits() -> None:
    index = torch.arange(1000, dtype=torch.int32)
    drawn = torch.stack([random_bits(index, key) for key in (5, 6, 5 + 2**40, 5 + 2**31)])
    for one in range(4):
        for other in range(one):
            same = ((drawn[one] ^ drawn[other])[:, None] >> torch.arange(32) & 1).double().mean()
            assert abs(same - 0.5) < 0.02


@pytest.mark.parametrize("shape", [(7,), (4, 6), (2, 3, 5), ()])
def test_numbers_of_a_box(shape: tuple[int, ...]) -> None:
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
    assert numbers_of((0,) * len(shape), shape, shape, torch.device("cpu")).equal(whole)
    offsets = tuple(size // 2 for size in shape)
    sizes = tuple(size - size // 2 for size in shape)
    found = numbers_of(offsets, sizes, shape, torch.device("cpu"))
    assert found.equal(whole[tuple(slice(offset, None) for offset in offsets)])


def test_an_empty_box() -> None:
    assert numbers_of((4, 0), (0, 3), (4, 3), torch.device("cpu")).shape == (0, 3)


def test_numbers_wrap_around() -> None:
    found = numbers_of((2**31, 0), (1, 3), (2**32, 4), torch.device("cpu"))
    assert [int(one) & WORD for one in found[0]] == [(2**33 + k) & WORD for k in range(3)]
