from __future__ import annotations

import pytest

from llmfactory.optim.schedule.spec import InverseSqrt


def test_is_the_papers_up_to_its_scale(check_warmup) -> None:
    """Equation 3: min(step^-0.5, step warmup^-1.5), steps from 1, divided by its peak warmup^-0.5."""
    schedule = InverseSqrt(warmup_steps=40).build(100)
    check_warmup(schedule, 40)
    for step in (1, 17, 40, 41, 160, 4000):
        assert schedule(step - 1) == pytest.approx(min(step**-0.5, step * 40**-1.5) * 40**0.5)
    assert schedule(159) == pytest.approx(0.5)


def test_without_warmup() -> None:
    schedule = InverseSqrt().build(100)
    assert (schedule(0), schedule(3)) == (1.0, 0.5)


def test_a_flat_start() -> None:
    """T5's and PaLM's: 1 / sqrt(max(n, k)), relative to its value at k."""
    schedule = InverseSqrt(warmup_steps=100, flat=True).build(1000)
    for step in range(1000):
        assert schedule(step) == pytest.approx((100 / max(step + 1, 100)) ** 0.5, rel=1e-14)
