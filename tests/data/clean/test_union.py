"""Clusters, against union-find with path halving."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from llmfactory.data.clean.union import clusters


def reference(pairs: list[tuple[int, int]]) -> dict[int, int]:
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {x: root(x) for x in list(parent)}


def found(pairs: list[tuple[int, int]]) -> dict[int, int]:
    numbers, first = clusters(*np.array(pairs, np.int64).reshape(-1, 2).T)
    return dict(zip(numbers.tolist(), first.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_union_find(seed: int) -> None:
    draw = random.Random(seed)
    pairs = [(draw.randrange(300), draw.randrange(300)) for _ in range(draw.randrange(30, 300))]
    assert found(pairs) == reference(pairs)
    draw.shuffle(pairs)
    assert found(pairs) == found([(b, a) for a, b in pairs])


def test_none_and_large_numbers() -> None:
    assert found([]) == {}
    assert found([(5, 5)]) == {5: 5}
    assert found([(1 << 60, 3), (1 << 60, 1 << 61)]) == {3: 3, 1 << 60: 3, 1 << 61: 3}


@pytest.mark.parametrize("shape", ["chain", "back", "star", "shuffled"])
def test_no_shape_takes_long(shape: str) -> None:
    n = 100_000
    order = np.random.default_rng(0).permutation(n) if shape == "shuffled" else np.arange(n)
    left, right = order[:-1], order[1:]
    if shape == "back":
        left, right = left[::-1], right[::-1]
    if shape == "star":
        left = np.full(n - 1, n - 1)
        right = np.arange(n - 1)
    start = time.process_time()
    numbers, first = clusters(left, right)
    assert len(numbers) == n
    assert not first.any()
    assert time.process_time() - start < 5
