"""z-scores against NumPy, and what a window holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from llmfactory.guard.detector import Detector
from llmfactory.guard.spec import Skip, Statistic

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.lognormal(size=(40, 2))


def pair(loss: float, norm: float) -> torch.Tensor:
    return torch.tensor([loss, norm], dtype=torch.float64)


def filled(values: Any, taken: Any = True, **settings: Any) -> Detector:
    detector = Detector(Skip(**{"window": 16, "least": 4, **settings}))
    for number, value in enumerate(values):
        detector.take(torch.tensor(value), torch.tensor(taken if isinstance(taken, bool) else taken[number]))
    return detector


def reference(values: np.ndarray[Any, Any], statistic: Statistic) -> tuple[Any, Any]:
    """(center, unit) [2] of values [n, 2]; of an even number, the lower median."""
    if statistic is Statistic.mean:
        return values.mean(0), values.std(0)
    middle = (len(values) - 1) // 2
    center = np.sort(values, 0)[middle]
    return center, 1.4826 * np.sort(np.abs(values - center), 0)[middle]


@pytest.mark.parametrize("statistic", list(Statistic))
@pytest.mark.parametrize("count", [1, 2, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("window", [7, 16])
def test_center_and_unit_are_those_of_the_window(statistic: Statistic, count: int, window: int) -> None:
    detector = filled(VALUES[:count], statistic=statistic, window=window, floor=0.001)
    _, z_2, center_2 = detector.judge(pair(3.0, 0.1))
    center, unit = reference(VALUES[max(0, count - window) : count], statistic)
    unit = np.maximum(unit, 0.001 * np.abs(center))
    np.testing.assert_allclose(center_2, center, rtol=1e-12)
    np.testing.assert_allclose(z_2, (np.array([3.0, 0.1]) - center) / unit, rtol=1e-9)


def test_what_is_not_taken_is_not_in_the_window() -> None:
    taken = [number % 3 != 0 for number in range(40)]
    detector = filled(VALUES, taken)
    kept = VALUES[taken][-16:]
    np.testing.assert_array_equal(np.array(detector.state()).T, kept)
    np.testing.assert_allclose(detector.judge(pair(1, 1))[2], reference(kept, Statistic.median)[0], rtol=1e-12)


def test_nothing_is_a_spike_before_there_were_enough() -> None:
    calm = [[1.0, 1.0]] * 10
    assert not filled(calm[:3]).judge(pair(99, 1))[0]
    assert filled(calm[:4]).judge(pair(99, 1))[0]
    assert not filled(calm, least=11).judge(pair(99, 1))[0]
    assert not Detector(Skip()).judge(pair(1e9, 1e9))[0]


def test_either_value_may_stand_out() -> None:
    calm = 1 + 0.1 * RANDOM.standard_normal((16, 2))
    center, unit = reference(calm, Statistic.median)
    low, high = center + 4.9 * unit, center + 5.1 * unit
    settings = {"loss_z": 5.0, "norm_z": 5.0}
    assert not filled(calm, **settings).judge(pair(*low))[0]
    assert filled(calm, **settings).judge(pair(high[0], low[1]))[0]
    assert filled(calm, **settings).judge(pair(low[0], high[1]))[0]
    assert not filled(calm, **settings | {"loss_z": None}).judge(pair(high[0], low[1]))[0]
    assert not filled(calm, **settings | {"norm_z": None}).judge(pair(low[0], high[1]))[0]
    assert not filled(calm, **settings).judge(pair(*(center - 50 * unit)))[0], "what is smaller is no spike"


def test_what_never_moved_has_a_smallest_unit() -> None:
    still = [[2.0, 2.0]] * 16
    assert not filled(still, floor=0.02).judge(pair(2.0 + 7.9 * 0.04, 2.0))[0]
    assert filled(still, floor=0.02).judge(pair(2.0 + 8.1 * 0.04, 2.0))[0]
    assert filled(still, floor=0.01).judge(pair(2.0 + 7.9 * 0.04, 2.0))[0]


def test_numbers_that_are_none_are_no_spike() -> None:
    for value in (pair(math.nan, 1), pair(1, math.nan)):
        assert not filled([[1.0, 1.0]] * 8).judge(value)[0]


@pytest.mark.parametrize("count", [0, 3, 16, 21])
def test_a_window_goes_on_from_its_state(count: int) -> None:
    before = filled(VALUES[:count])
    after = Detector(before.spec)
    after.load(before.state())
    for value in VALUES[count:]:
        found, expected = after.judge(torch.tensor(value)), before.judge(torch.tensor(value))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        for detector in (before, after):
            detector.take(torch.tensor(value), torch.tensor(True))


def test_a_shorter_window_takes_the_end() -> None:
    short = Detector(Skip(window=5, least=2))
    short.load(filled(VALUES).state())
    np.testing.assert_array_equal(np.array(short.state()).T, VALUES[-5:])
