from __future__ import annotations

from llmfactory.optim.schedule.warmup import share_done, warmup


def test_growth() -> None:
    assert [warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, 0) == 1.0


def test_share_done_stays_within_0_and_1() -> None:
    assert [share_done(step, 10, 20) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert share_done(10, 10, 10) == 0.0
    assert share_done(11, 10, 10) == 1.0
