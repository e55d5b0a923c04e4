from __future__ import annotations

import math

import pytest

from llmfactory.optim.schedule.spec import Cosine


def test_half_a_cosine(check_warmup) -> None:
    schedule = Cosine(warmup_steps=10, floor=0.1).build(110)
    check_warmup(schedule, 10)
    for step in (10, 20, 47, 60, 99, 110):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert schedule(step) == pytest.approx(expected)
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(5000) == pytest.approx(0.1)


def test_shorter_than_its_warmup() -> None:
    schedule = Cosine(warmup_steps=100).build(10)
    assert [schedule(step) for step in (0, 9)] == [0.01, 0.1]
