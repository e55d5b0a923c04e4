"""Spans of Poisson length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmfactory.data.corruption.poisson import poisson, poisson_spans, spread
from llmfactory.data.corruption.ragged import owners, starts, sums


@pytest.mark.parametrize("mean", [0.3, 3.0, 20.0])
def test_the_distribution(mean: float) -> None:
    found = poisson(np.random.default_rng(0).random(200_000), mean)
    shares = np.bincount(found) / len(found)
    for k, share in enumerate(shares[: int(mean + 3 * mean**0.5)]):
        assert share == pytest.approx(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)), abs=0.004)
    assert found.mean() == pytest.approx(mean, rel=0.02)


def slow(uniform, noise, mean, most):
    """One document: draw until there is enough."""
    lengths, empty, left = [], 0, noise
    for number in uniform[:-1]:
        if left == 0:
            break
        k = min(int(poisson(np.array([number]), mean)[0]), left)
        empty += k == 0
        lengths += [k] if k else []
        left -= k
    lengths += [left] if left else []
    while len(lengths) > most:
        last = lengths.pop()
        lengths[-1] += last
    return lengths, empty


@pytest.mark.parametrize("mean", [0.5, 3.0])
def test_lengths_are_the_reference_s(mean: float) -> None:
    numbers = np.random.default_rng(1)
    length = numbers.integers(1, 25, 150)
    noise = (numbers.random(150) * (length + 1)).astype(int)
    uniform = numbers.random(length.sum())
    cap = numbers.integers(1, 6, 150)
    for most in (None, cap):
        found, count, empty = poisson_spans(uniform, length, noise, mean, most)
        for piece, start in enumerate(starts(length)):
            limit = length[piece] - noise[piece] + 1
            limit = limit if most is None else min(limit, most[piece])
            expected, zeros = slow(uniform[start : start + length[piece]], noise[piece], mean, limit)
            mine = found[starts(count)[piece] :][: count[piece]]
            assert mine.tolist() == expected
            assert empty[piece] == zeros


def test_spans_stand_apart_at_random_places() -> None:
    numbers = np.random.default_rng(2)
    length = numbers.integers(1, 25, 300)
    noise = (numbers.random(300) * (length + 1)).astype(int)
    lengths, count, _ = poisson_spans(numbers.random(length.sum()), length, noise, 3.0)
    missing = spread(lengths, count, length, numbers.random(length.sum()))
    for piece, start in enumerate(starts(length)):
        here = "".join("x" if gone else "." for gone in missing[start : start + length[piece]])
        runs = [len(run) for run in here.split(".") if run]
        assert runs == lengths[owners(count) == piece].tolist()
    assert (sums(missing, length) == noise).all()


def test_every_gap_is_equally_likely() -> None:
    count = 12_000
    missing = spread(np.full(count, 2), np.ones(count, int), np.full(count, 5), np.random.default_rng(3).random(5 * count))
    first = missing.reshape(count, 5).argmax(1)
    assert abs(np.bincount(first, minlength=4) - count / 4).max() < 250
