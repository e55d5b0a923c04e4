"""How sure a mean over items is: percentile bootstrap intervals (Efron and Tibshirani 1993, chapters 13 and 16).

Items are drawn with replacement, and the mean of each draw is noted; the interval lies between the quantiles of these means. Of
two models on the same items the difference of each item is drawn (paired), so what makes an item hard for both cancels. With
several seeds, seeds and items are drawn independently: each seed has its row, each item its column.

    mean = sum_s sum_n w_sn v_sn / sum_s sum_n w_sn d_n

where w_sn counts how often seed s and item n were drawn, and d_n is 1, or what the sums v_sn are divided by (tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
AT_ONCE = 1 << 22
"""Numbers that are drawn at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Of a mean."""

    mean: float
    low: float
    high: float
    level: float
    """Share of such intervals that hold the true mean."""
    items: int
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0.0 or self.high < 0.0

    def plain(self) -> dict[str, float | int | bool]:
        about = {"mean": self.mean, "low": self.low, "high": self.high, "level": self.level}
        return {**about, "items": self.items, "seeds": self.seeds, "excludes_zero": self.excludes_zero}


def interval(
    values: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 4_000,
    seed: int = 0,
) -> Interval:
    """Of the mean of some items, or of a ratio of sums.

    Args:
        values: [N] or [S, N], of each item, in each of S seeds.
        denominators: [N] or [S, N], what the sum of values is divided by the sum of; None: ones.

    Raises:
        ValueError: there is no item, or a value is not finite.
    """
    values_SN = np.atleast_2d(np.asarray(values, np.float64))
    over_SN = (
        np.ones_like(values_SN) if denominators is None else np.broadcast_to(denominators, values_SN.shape).astype(np.float64)
    )
    if not values_SN.size:
        raise ValueError("there is no item to take the mean of")
    if not (np.isfinite(values_SN).all() and np.isfinite(over_SN).all()):
        raise ValueError("a value is not finite")
    means = np.sort(_means(values_SN, over_SN, resamples, np.random.default_rng(seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    seeds, items = values_SN.shape
    return Interval(float(values_SN.sum() / over_SN.sum()), float(low), float(high), level, items, seeds)


def paired(
    before: ArrayLike,
    after: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 4_000,
    seed: int = 0,
) -> Interval:
    """Of the mean of `after` - `before`, item by item."""
    one, other = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} values before and {other.shape} after are not of the same items")
    return interval(other - one, denominators, level=level, resamples=resamples, seed=seed)


def _means(values_SN: Float, over_SN: Float, resamples: int, generator: np.random.Generator) -> Float:
    """[R], the mean of each draw."""
    seeds, items = values_SN.shape
    found = []
    for start in range(0, resamples, step := max(1, AT_ONCE // items)):
        count = min(step, resamples - start)
        seeds_RS = counted(generator.integers(seeds, size=(count, seeds)), seeds)
        items_RN = counted(generator.integers(items, size=(count, items)), items)
        sums_R = ((seeds_RS @ values_SN) * items_RN).sum(1)
        found.append(sums_R / ((seeds_RS @ over_SN) * items_RN).sum(1))
    return np.concatenate(found)


def counted(drawn: NDArray[np.int64], below: int) -> Float:
    """[R, N] of how often each number below N is among the [R, M] drawn."""
    rows = len(drawn)
    places = drawn + below * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * below).reshape(rows, below).astype(np.float64)
