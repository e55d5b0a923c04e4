"""Ending a run before its last step (llmfactory.run.stopping)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_job import Memory, Sender, toy_job, train

from llmfactory.checkpoint import io
from llmfactory.run import supply


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end(tmp_path: Path, number: signal.Signals) -> None:
    fitted, tracker = train(toy_job(tmp_path, trainer__save_every=None), tmp_path / "run", Sender(3, number))
    assert (fitted.stopped, fitted.step) == ("terminated", 3)
    assert list(tracker.rows) == [1, 2, 3]
    assert [io.step_of(path) for path in io.checkpoints(tmp_path / "run" / "checkpoints")] == [3]


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    class Impatient(Memory):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(toy_job(tmp_path), tmp_path / "run", Impatient())
    assert signal.getsignal(signal.SIGINT) == before


def test_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two evaluations without a new lowest loss, counted over a resume too."""
    losses = iter([3.0, 2.0, 2.5, 1.5, 1.6, 1.5])

    def measured(*_: object) -> SimpleNamespace:
        loss = next(losses)
        return SimpleNamespace(loss=loss, losses=lambda: {"held_out_loss": loss}, watched=dict)

    monkeypatch.setattr(supply, "held_out_measure", measured)
    settings = {"trainer__eval_every": 2, "trainer__patience": 2, "trainer__keep_last": 1}
    train(toy_job(tmp_path, trainer__max_steps=10, **settings), tmp_path / "run")
    fitted, _ = train(toy_job(tmp_path, trainer__max_steps=60, **settings), tmp_path / "run")
    assert (fitted.stopped, fitted.best_loss, fitted.best_step, fitted.step) == ("early", 1.5, 8, 12)
    assert [io.step_of(path) for path in io.checkpoints(tmp_path / "run" / "checkpoints")] == [8, 12]
