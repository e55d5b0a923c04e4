"""Bootstrap intervals against a plain loop over the same draws, against theory, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.metric.bootstrap import Interval, counted, interval, paired


def plain(values: np.ndarray, over: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """One draw after the other, as the definition says."""
    generator = np.random.default_rng(seed)
    seeds, items = values.shape
    drawn_seeds = generator.integers(seeds, size=(resamples, seeds))
    drawn_items = generator.integers(items, size=(resamples, items))
    means = []
    for some, others in zip(drawn_seeds, drawn_items, strict=True):
        total = sum(values[s, n] for s in some for n in others)
        means.append(total / sum(over[s, n] for s in some for n in others))
    return tuple(np.quantile(means, [0.025, 0.975]))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(1, 7), (3, 5), (2, 1)])
def test_equals_a_plain_loop(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    values, over = generator.normal(size=shape), generator.integers(1, 9, size=shape).astype(float)
    for denominators, divided in ((None, np.ones(shape)), (over, over)):
        found = interval(values, denominators, resamples=200, seed=5)
        assert (found.low, found.high) == pytest.approx(plain(values, divided, 200, 5), abs=1e-12)
        assert found.mean == pytest.approx(values.sum() / divided.sum())
        assert (found.seeds, found.items) == shape


def test_it_is_the_normal_interval_where_there_are_many() -> None:
    values = np.random.default_rng(0).normal(0.3, 2.0, size=4000)
    found = interval(values)
    error = values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    assert interval(values, level=0.5).high - interval(values, level=0.5).low == pytest.approx(2 * 0.6745 * error, rel=0.05)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    found = [interval(generator.exponential(size=60), resamples=400, seed=n) for n in range(300)]
    assert 0.88 < np.mean([one.low <= 1.0 <= one.high for one in found]) < 0.99


def test_pairs_cancel_what_items_have_in_common() -> None:
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 5, size=500)
    before, after = hard + generator.normal(0, 0.1, 500), hard + 0.05 + generator.normal(0, 0.1, 500)
    found = paired(before, after)
    assert found.excludes_zero
    assert 0.03 < found.mean < 0.07
    assert paired(after, before).mean == -found.mean
    assert not paired(np.random.default_rng(9).permutation(before), after).excludes_zero  # of other items


def test_seeds_that_differ_widen_it() -> None:
    items = np.random.default_rng(4).normal(1.0, 1.0, size=(1, 400))
    alike, unlike = np.repeat(items, 3, 0), items + np.array([[-0.5], [0.0], [0.5]])
    narrow, wide = interval(alike), interval(unlike)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert narrow.mean == pytest.approx(wide.mean)


def test_edges() -> None:
    assert interval([2.0]) == Interval(2.0, 2.0, 2.0, 0.95, 1, 1)
    same = interval([1.0] * 50)
    assert (same.low, same.high, same.excludes_zero) == (1.0, 1.0, True)
    assert not interval([0.0, 0.0]).excludes_zero
    assert interval([-1.0, -1.0]).excludes_zero
    assert interval([1.0, 2.0, 4.0], seed=1).low == interval([1.0, 2.0, 4.0], seed=1).low
    for wrong in ([], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match=r"no item|not finite"):
            interval(wrong)
    with pytest.raises(ValueError, match="not of the same items"):
        paired([1.0], [1.0, 2.0])
    assert counted(np.array([[0, 0, 2]]), 3).tolist() == [[2.0, 0.0, 1.0]]
    assert interval([1.0], resamples=10).plain()["excludes_zero"] is True
