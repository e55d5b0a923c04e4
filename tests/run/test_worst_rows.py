"""Rows that stand out from their batch."""

from __future__ import annotations

import math

import pytest

from llmfactory.guard.remedy import Finding
from llmfactory.guard.spec import Skip
from llmfactory.run.worst_rows import MOST, outliers, usual_row

CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.02]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([*CALM, 9.0, 30.0], [8, 7]),
        ([9.0, *CALM, math.nan, 30.0], [8, 9, 0]),
        (CALM, [1]),
        ([2.0, 2.0, 2.0, 2.0 + 8 * 0.04 + 0.01], [3]),
        ([math.nan, math.inf], [0, 1]),
        ([3.0], [0]),
    ],
)
def test_the_worst_come_first(losses: list[float], expected: list[int]) -> None:
    """Those above the median by more than loss_z units, what is no number before all; at least one."""
    assert outliers(losses, Skip(loss_z=8.0, floor=0.02)) == expected


def test_not_all_are_named() -> None:
    assert len(outliers([math.nan] * 100, Skip())) == MOST


def test_where_most_of_a_batch_is_wrong_all_of_it_is_named() -> None:
    """Each is compared with what is usual, and no row that is as usual is named."""
    spec, usual = Skip(loss_z=8.0, floor=0.02), (2.0, 0.1)
    assert outliers([9.0, 9.1, 9.2, 9.0], spec) == [2]
    assert outliers([9.0, 9.1, 9.2, 9.0], spec, usual) == [2, 1, 0, 3]
    assert outliers([2.0, 9.0, 9.1, 2.1], spec, usual) == [2, 1]
    assert outliers([2.7, 9.0, 9.1, 2.9], spec, usual) == [2, 1, 3], "8 x 0.1 above 2.0"
    assert outliers([2.0, 2.1, 1.9, 2.05, 9.0], spec, (9.0, 1.0)) == [4], "a batch's own measure holds besides"
    assert outliers([2.0, 2.9, 2.0, 2.0, 9.0], Skip(loss_z=None)) == [4, 1]


def test_what_is_usual_of_a_row_follows_from_steps() -> None:
    spike = Finding(7, True, 4.0, 1.0, 20.0, 0.0, 2.0, 1.0)
    assert usual_row(spike, [4.0] * 4) == (2.0, pytest.approx(2 * 0.1))
    assert usual_row(spike, [4.0] * 16) == (2.0, pytest.approx(4 * 0.1))
    assert usual_row(spike, [3.2, 4.0]) is not None
    assert usual_row(spike, [1.0, 4.0]) is None, "these rows do not make that step"
    assert usual_row(spike, [8.0, 4.0]) is None
    assert usual_row(spike, [math.nan, 4.0]) is None
    for other in (Finding(7, False, 4.0, math.inf, 20.0, 0.0, 2.0, 1.0), Finding(7, True, 4.0, 9.0, -1.0, 30.0, 4.1, 1.0)):
        assert usual_row(other, [4.0] * 4) is None
