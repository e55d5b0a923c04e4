"""The order of samples: a pure function of the seed and of the global number of the sample, for any number of readers.

Each epoch is a keyed bijection of its rows: a Feistel network on the bits of the index (Luby and Rackoff 1988), walked along its
cycles until the value falls below the number of rows (Black and Rogaway 2002). Nothing is shuffled and nothing is stored: the
order of 10^12 rows costs as much as that of ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
"""Four would do for large domains; small ones need more to mix."""
Words = NDArray[np.uint64]


class Order:
    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("an order needs at least one row")
        self.size, self.seed = size, seed
        self.bits = max(1, -(-(size - 1).bit_length() // 2))  # of each half: the domain is 4^bits, less than 4 times the size

        words = np.array([seed & (2**64 - 1), size], np.uint64)
        self._key: Words = mix(mix(words[:1]) ^ words[1:])

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row number of each global sample number. Sample i is in epoch i // size."""
        samples: NDArray[np.int64] = np.asarray(indices, np.int64)
        epoch, place = samples // self.size, samples % self.size
        key = mix(epoch.astype(np.uint64) ^ self._key)
        value: Words = self._feistel(place.astype(np.uint64), key)
        while (outside := np.flatnonzero(value >= self.size)).size:
            value[outside] = self._feistel(value[outside], key[outside])
        return value.view(np.int64)

    def _feistel(self, value: Words, key: Words) -> Words:
        bits, mask = np.uint64(self.bits), np.uint64((1 << self.bits) - 1)
        left, right = value >> bits, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(key + right + (np.uint64(number) << np.uint64(32))) & mask)
        mixed: Words = (left << bits) | right
        return mixed


Stretch = tuple[int, int]
"""[first, last) of global sample numbers."""


def passing_over(samples: NDArray[np.int64], left_out: Sequence[Stretch]) -> NDArray[np.int64]:
    """The numbers in the order of what is left when stretches, ascending and apart, are left out, as numbers in the order itself."""
    for first, last in left_out:
        samples = np.where(samples >= first, samples + (last - first), samples)
    return samples


def joined(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The same numbers, ascending and apart."""
    found: list[Stretch] = []
    for first, last in sorted((first, last) for first, last in stretches if first < last):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return tuple(found)


def mix(x: Words) -> Words:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit of the result depends on every bit of x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def seed_of(seed: int, name: str) -> int:
    """The seed of a part by its name, so that parts that come and go leave each other's order alone."""
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
