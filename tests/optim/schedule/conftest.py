"""What every schedule must do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmfactory.optim.schedule.spec import Schedule


@pytest.fixture
def check_warmup() -> Callable[[Schedule, int], None]:
    """Linear growth from the first step, the peak at step `steps - 1`, never above it."""

    def check(schedule: Schedule, steps: int) -> None:
        for step in range(steps):
            assert schedule(step) == pytest.approx((step + 1) / steps)
        assert max(schedule(step) for step in range(1000)) == pytest.approx(1.0)

    return check
