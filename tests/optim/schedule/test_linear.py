from __future__ import annotations

import pytest

from llmfactory.optim.schedule.spec import Linear


def test_a_straight_line_to_the_floor(check_warmup) -> None:
    schedule = Linear(warmup_steps=10, floor=0.2).build(110)
    check_warmup(schedule, 10)
    assert schedule(10) == 1.0
    assert schedule(35) == pytest.approx(0.8)
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(110) == pytest.approx(0.2)
    assert schedule(5000) == pytest.approx(0.2)


def test_a_pinned_horizon_does_not_depend_on_max_steps() -> None:
    pinned = Linear(horizon=50)
    assert [pinned.build(10)(step) for step in range(60)] == [pinned.build(1000)(step) for step in range(60)]
    assert (pinned.pinned_horizon(), Linear().pinned_horizon()) == (50, None)
