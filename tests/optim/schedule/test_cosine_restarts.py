from __future__ import annotations

import pytest

from llmfactory.optim.schedule.spec import Cosine, CosineRestarts


def test_each_period_begins_at_the_peak(check_warmup) -> None:
    schedule = CosineRestarts(warmup_steps=10, periods=2, factor=3.0, floor=0.0).build(90)
    check_warmup(schedule, 10)
    assert schedule(10) == schedule(30) == 1.0, "of 80 steps the first period takes a quarter"
    assert schedule(20) == schedule(60) == pytest.approx(0.5)
    assert schedule(29) < 0.01
    assert schedule(90) == schedule(5000) == 0.0
    schedule = CosineRestarts(periods=3, factor=3.0, floor=0.0).build(130)
    assert [step for step in range(130) if schedule(step) == 1.0] == [0, 10, 40], "lengths of 10, 30 and 90"


def test_one_period_is_a_cosine() -> None:
    one, cosine = CosineRestarts(periods=1, floor=0.1).build(50), Cosine(floor=0.1).build(50)
    assert [one(step) for step in range(60)] == pytest.approx([cosine(step) for step in range(60)])
