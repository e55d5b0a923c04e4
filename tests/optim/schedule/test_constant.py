from __future__ import annotations

from llmfactory.optim.schedule.spec import Constant


def test_warmup_then_the_peak(check_warmup) -> None:
    schedule = Constant(warmup_steps=4).build(100)
    check_warmup(schedule, 4)
    assert [schedule(step) for step in (3, 4, 99, 5000)] == [1.0] * 4
    assert Constant().build(100)(0) == 1.0
