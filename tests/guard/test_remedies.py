"""What each remedy makes of a step: report, stop, skip, clip, lower_lr, rewind."""

from __future__ import annotations

import math

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.guard.detector import Detector
from llmfactory.guard.guard import Guard
from llmfactory.guard.remedy import Action, Finding
from llmfactory.guard.rewind import RewindRun
from llmfactory.guard.spec import Clip, GuardSpec, LowerLr, None_, Report, Rewind, Skip, Stop, WatchSpec

SPIKE = Finding(7, True, 9.0, 5.0, 30.0, 20.0, 2.0, 1.5)
BROKEN = Finding(7, False, math.nan, math.nan, math.nan, math.nan, 2.0, 1.5)
NO, YES = torch.tensor(False), torch.tensor(True)


@pytest.mark.parametrize(
    ("spec", "spike", "broken"),
    [
        (Report(), Action.report, Action.stop),
        (Stop(), Action.stop, Action.stop),
        (Skip(), Action.skip, Action.skip),
        (Clip(), Action.clip, Action.skip),
        (LowerLr(), Action.lower_lr, Action.lower_lr),
        (Rewind(), Action.rewind, Action.rewind),
    ],
)
def test_what_is_decided(spec: GuardSpec, spike: Action, broken: Action) -> None:
    remedy = spec.build()
    assert remedy is not None
    assert remedy.decide(SPIKE).action is spike
    assert remedy.decide(BROKEN).action is broken


def test_nobody_watches_by_default() -> None:
    assert None_().build() is None


def guard(spec: WatchSpec, losses: list[float]) -> tuple[Guard, list[bool], list[torch.Tensor | None]]:
    """After these losses, each with a norm of half of it: who was withheld, and the largest norms."""
    remedy = spec.build()
    assert remedy is not None
    made, held, most = Guard(spec, remedy, Detector(spec)), [], []
    for step, loss in enumerate(losses, start=1):
        value = torch.tensor(loss)
        withheld, limit = made.judge(step, value, value / 2, ~value.isfinite(), NO)
        held.append(bool(withheld))
        most.append(limit)
    return made, held, most


CALM = [2.0, 2.1, 1.9, 2.0, 2.05]


@pytest.mark.parametrize("spec", [Skip(least=4), Stop(least=4), LowerLr(least=4), Rewind(least=4)])
def test_spikes_are_withheld_and_not_compared_with(spec: WatchSpec) -> None:
    made, held, most = guard(spec, [*CALM, 9.0, 9.0, 2.0, math.nan, 9.0])
    assert held == [False] * 5 + [True, True, False, True, True]
    assert [one.step for one in made.findings()] == [6, 7, 9, 10]
    assert made.findings() == []
    assert len(made.detector.state()[0]) == 6
    assert most == [None] * 10


@pytest.mark.parametrize("spec", [Report(least=4), Clip(least=4, factor=0.5)])
def test_spikes_that_are_taken_are_compared_with(spec: WatchSpec) -> None:
    made, held, most = guard(spec, [*CALM, 9.0, math.nan])
    assert held == [False] * 6 + [True]
    assert len(made.detector.state()[0]) == 6
    if isinstance(spec, Clip):
        assert [float(one) for one in most if one is not None][:6] == [math.inf] * 5 + [0.5 * 1.0]


def test_an_overflow_is_nobody_s_fault() -> None:
    made, _, _ = guard(Skip(least=4), CALM)
    made.findings()
    withheld, _ = made.judge(6, torch.tensor(2.0), torch.tensor(math.inf), NO, YES)
    assert not withheld
    assert made.findings() == []
    assert len(made.detector.state()[0]) == 5


def test_rates_multiply_while_they_hold() -> None:
    made, _, _ = guard(LowerLr(least=4, factor=0.5, steps=10), CALM)
    for step in (6, 9):
        finding = Finding(step, True, 9.0, 5.0, 30.0, 20.0, 2.0, 1.5)
        made.slow_down(finding, made.decide(finding), step)
    assert [made.lr_factor(step) for step in (5, 6, 8, 9, 15, 16, 18, 19)] == [1, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 1]
    made.decisions = 2
    again, _, _ = guard(LowerLr(least=4), [])
    again.load(made.state())
    assert again.state() == made.state()
    assert again.decisions == 2
    assert [again.lr_factor(step) for step in (5, 6, 9, 16, 19)] == [1, 0.5, 0.25, 0.5, 1]


@pytest.mark.parametrize(
    ("step", "saved", "back", "target"),
    [
        (250, [100, 200], 100, 100),
        (201, [100, 200], 100, 100),
        (200, [100, 200], 100, 100),
        (200, [50, 100, 150], 100, 100),
        (160, [100], 100, 100),
        (160, [100, 150], 200, 100),
        (99, [], 100, 0),
        (100, [100], 1, 0),
        (101, [100], 1, 100),
    ],
)
def test_where_a_rewind_goes(step: int, saved: list[int], back: int, target: int) -> None:
    remedy = RewindRun(back, before=20, after=30)
    assert remedy.target(step, saved) == target
    first, last = remedy.left_out(step, target)
    assert first == max(target, step - 21)
    assert last == step + 30
    assert RewindRun(back, 0, 0).left_out(step, 0) == (step - 1, step), "the spike's own batch"


def test_settings_that_cannot_be() -> None:
    for make in (
        lambda: Skip(window=8, least=9),
        lambda: Skip(loss_z=0.0),
        lambda: Skip(limit=0),
        lambda: Clip(factor=0.0),
        lambda: LowerLr(factor=1.5),
        lambda: Rewind(back=0),
    ):
        with pytest.raises(ConfigError):
            make()
