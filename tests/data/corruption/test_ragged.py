"""Arithmetic on pieces laid end to end, against loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmfactory.data.corruption.ragged import owners, partition, ranks, running, starts, sums, within

LENGTHS = np.array([3, 0, 1, 5, 0, 2])
VALUES = np.array([2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4])


def pieces() -> list[list[int]]:
    return [VALUES[start : start + length].tolist() for start, length in zip(np.cumsum([0, *LENGTHS[:-1]]), LENGTHS, strict=True)]


def test_places() -> None:
    assert starts(LENGTHS).tolist() == [0, 3, 3, 4, 9, 9]
    assert within(LENGTHS).tolist() == [place for length in LENGTHS for place in range(length)]
    assert owners(LENGTHS).tolist() == [piece for piece, length in enumerate(LENGTHS) for _ in range(length)]


def test_sums() -> None:
    assert sums(VALUES, LENGTHS).tolist() == [sum(piece) for piece in pieces()]
    assert running(VALUES, LENGTHS).tolist() == [sum(piece[:place]) for piece in pieces() for place in range(len(piece))]
    assert running(VALUES > 4, LENGTHS).tolist() == [
        sum(value > 4 for value in piece[:place]) for piece in pieces() for place in range(len(piece))
    ]


def test_ranks() -> None:
    keys = np.random.default_rng(0).random(11)
    found = ranks(keys, LENGTHS)
    for start, length in zip(starts(LENGTHS), LENGTHS, strict=True):
        piece = keys[start : start + length]
        assert found[start : start + length].tolist() == [int((piece < key).sum()) for key in piece]


def test_parts_make_the_total() -> None:
    numbers = np.random.default_rng(1)
    total = numbers.integers(0, 12, 200)
    parts = np.where(total > 0, 1 + (numbers.random(200) * total).astype(int), 0)
    found = partition(total, parts, numbers.random(total.sum()))
    assert len(found) == parts.sum()
    assert found.min() >= 1
    assert sums(found, parts).tolist() == total.tolist()


@pytest.mark.parametrize(("total", "parts"), [(5, 2), (6, 3), (4, 4), (7, 1)])
def test_all_ways_of_cutting_are_equally_likely(total: int, parts: int) -> None:
    from math import comb

    count = 20_000
    many = np.full(count, total)
    found = partition(many, np.full(count, parts), np.random.default_rng(2).random(count * total)).reshape(count, parts)
    ways = Counter(map(tuple, found.tolist()))
    assert len(ways) == comb(total - 1, parts - 1)
    expected = count / len(ways)
    assert all(abs(number - expected) < 5 * expected**0.5 + 1 for number in ways.values())
