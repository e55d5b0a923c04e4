"""The state of a run, and its watch."""

from __future__ import annotations

import json

import pytest

from llmfactory.run import progress as module
from llmfactory.run.progress import Progress, Stopwatch


def test_the_watch_leaves_out_what_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    watch = Stopwatch(seconds=5.0)
    assert watch.read() == 5.0
    now = 103.0
    with watch.paused():
        now = 200.0
    now = 201.0
    assert watch.read() == 9.0
    watch.stop()
    now = 500.0
    watch.stop()
    assert watch.seconds == 9.0


def test_best_and_stale() -> None:
    progress = Progress()
    found = []
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.5, 1.0), start=1):
        progress.step = step
        found.append((progress.evaluated(loss), progress.best_step, progress.stale))
    assert found == [(True, 1, 0), (True, 2, 0), (False, 2, 1), (False, 2, 2), (True, 5, 0)]


def test_goes_through_json() -> None:
    progress = Progress(step=7, tokens=1e9 / 3, best_loss=2 / 3, best_step=5, stale=2, watch=Stopwatch(1.25))
    assert Progress.restored(json.loads(json.dumps(progress.state()))) == progress


def test_a_loss_that_is_no_number_is_never_the_best():
    progress = Progress(step=1)
    assert not progress.evaluated(float("nan"))
    progress.step = 2
    assert progress.evaluated(1.0)
    assert (progress.best_loss, progress.best_step, progress.stale) == (1.0, 2, 0)
