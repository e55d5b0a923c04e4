"""Random numbers that belong to a row: a function of the row's key and of the place within it, and of nothing else.

A key is mixed from a seed and the number of a sample; number i of stream s of a row is the SplitMix64 finalizer (Steele et al.
2014) of a counter that starts at that key. So a row is corrupted alike whichever process reads it, beside whichever other rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.order import Words, mix

Float64 = NDArray[np.float64]


def row_keys(seed: int, numbers: NDArray[np.int64]) -> Words:
    """A key for each sample number, [B]."""
    start = mix(np.array([seed & (2**64 - 1)], np.uint64))
    return mix(numbers.astype(np.uint64) ^ start)


def uniform(keys_B: Words, count: int, stream: int) -> Float64:
    """[B, count] in [0, 1), multiples of 2^-53. Streams of one row are independent of each other."""
    start_B1 = mix(keys_B ^ mix(np.array([stream], np.uint64)))[:, None]
    words: Words = mix(start_B1 + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    numbers: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers
