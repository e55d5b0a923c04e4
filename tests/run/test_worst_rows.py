"""Rows that stand out from their batch."""

from __future__ import annotations

import math

import pytest

from llmfactory.guard.spec import Skip
from llmfactory.run.worst_rows import MOST, outliers

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
