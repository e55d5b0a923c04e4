from __future__ import annotations

import pytest

from llmfactory.optim.schedule.spec import Decay, Wsd


def test_warmup_stable_decay(check_warmup) -> None:
    schedule = Wsd(warmup_steps=10, decay_share=0.2, floor=0.5).build(100)
    check_warmup(schedule, 10)
    assert [schedule(step) for step in (10, 50, 80)] == [1.0] * 3
    assert schedule(90) == pytest.approx(0.75)
    assert schedule(100) == schedule(5000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("decay", "half"), [(Decay.linear, 0.75), (Decay.one_minus_sqrt, 1 - 0.5 * 0.5**0.5), (Decay.cosine, 0.75)]
)
def test_ways_down(decay: Decay, half: float) -> None:
    schedule = Wsd(warmup_steps=10, decay_share=0.2, floor=0.5, decay=decay).build(100)
    assert [schedule(step) for step in (80, 90, 100, 5000)] == pytest.approx([1.0, half, 0.5, 0.5])


def test_the_stable_part_is_the_same_for_any_horizon() -> None:
    short, long = Wsd(warmup_steps=5).build(100), Wsd(warmup_steps=5).build(1000)
    assert [short(step) for step in range(80)] == [long(step) for step in range(80)]


def test_shares_at_the_ends() -> None:
    assert Wsd(decay_share=0.0, floor=0.0).build(100)(99) == 1.0
    everything = Wsd(decay_share=1.0, floor=0.0, warmup_steps=10).build(110)
    assert everything(60) == pytest.approx(0.5)
