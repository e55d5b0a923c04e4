"""What several tries are worth, estimated without bias from n of them, for every k up to n."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def best_of(rewards: Sequence[float], k: int) -> float:
    """The expected highest reward of k tries out of the n that there are: the i-th lowest, counted from 1, is the highest of
    C(i-1, k-1) of the C(n, k) choices (Nakano et al. 2021)."""
    ranked = sorted(rewards)
    return sum(comb(place, k - 1) * reward for place, reward in enumerate(ranked)) / comb(len(ranked), k)


def pass_at(tries: int, right: int, k: int) -> float:
    """The probability that one of k tries out of n is right, where c of the n are: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021,
    equation 1)."""
    return 1 - comb(tries - right, k) / comb(tries, k)


def ladder(most: int) -> list[int]:
    """The k that are shown: 1, 2, 4, 8, ..., and `most`."""
    steps = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*steps, most]
