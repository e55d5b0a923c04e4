from __future__ import annotations

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Linear, Polynomial


def test_a_power_of_what_is_left(check_warmup) -> None:
    schedule = Polynomial(warmup_steps=10, power=2.0, floor=0.2).build(110)
    check_warmup(schedule, 10)
    assert schedule(60) == pytest.approx(0.2 + 0.8 * 0.25)
    assert schedule(110) == schedule(5000) == pytest.approx(0.2)


def test_power_one_is_a_line() -> None:
    line, power = Linear(warmup_steps=5, floor=0.1).build(50), Polynomial(warmup_steps=5, floor=0.1, power=1.0).build(50)
    assert [power(step) for step in range(60)] == pytest.approx([line(step) for step in range(60)])


def test_no_power() -> None:
    with pytest.raises(ConfigError, match="power"):
        Polynomial(power=0.0)
