from __future__ import annotations

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import (
    Constant,
    Cosine,
    CosineRestarts,
    DecaySpec,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
    ScheduleSpec,
    Wsd,
)
from llmfactory.optim.schedule.warmup import share_done, warmup


def test_growth() -> None:
    assert [warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, 0) == 1.0


def test_share_done_stays_within_0_and_1() -> None:
    assert [share_done(step, 10, 20) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert share_done(10, 10, 10) == 0.0
    assert share_done(11, 10, 10) == 1.0


ALL: tuple[type[ScheduleSpec], ...] = (Constant, Cosine, CosineRestarts, InverseSqrt, Linear, OneCycle, Polynomial, Wsd)


@pytest.mark.parametrize("cls", ALL)
def test_a_share_is_the_same_as_its_steps(cls: type[ScheduleSpec]) -> None:
    """Of the run, where nothing else says when a schedule ends."""
    share, steps = cls(warmup_share=0.03).build(1000), cls(warmup_steps=30).build(1000)
    assert [share(step) for step in range(1000)] == [steps(step) for step in range(1000)]
    assert cls(warmup_share=0.03).pinned_horizon() is None


def test_a_share_of_a_pinned_schedule_does_not_depend_on_the_run() -> None:
    spec = Cosine(warmup_share=0.1, horizon=200)
    assert (spec.warmup(50), spec.warmup(9000), spec.pinned_horizon()) == (20, 20, 200)
    assert issubclass(Cosine, DecaySpec)


def test_the_warmup_is_said_once() -> None:
    with pytest.raises(ConfigError, match=r"warmup_share=0\.03 says it too"):
        Linear(warmup_steps=5, warmup_share=0.03)
    with pytest.raises(ConfigError, match="ends within the warm-up of 200 steps"):
        Cosine(warmup_share=1.0, horizon=200)
