"""Ending a run before its last step: on a signal, or when the held-out loss no longer falls."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.progress import Progress


class Stopping(pl.Callback):
    """Sets `trainer.should_stop`; the callback after it saves."""

    def __init__(self, progress: Progress, strategy: MeshStrategy, patience: int | None) -> None:
        self.progress, self.strategy, self.patience = progress, strategy, patience

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        alone = self.strategy.world.size == 1
        if self.progress.out_of_patience(self.patience):  # first: a signal at the same step changes nothing about it
            self.progress.stopped = "early"
        elif self.strategy.stop_agreed or (alone and self.strategy.stop_asked):
            self.progress.stopped = "terminated"
        trainer.should_stop = self.progress.stopped is not None


@contextmanager
def signals(strategy: MeshStrategy) -> Iterator[None]:
    """SIGTERM, and the first Ctrl-C, end the run after the current step, with a checkpoint; the second Ctrl-C at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if strategy.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        strategy.stop_asked = True

    if threading.current_thread() is not threading.main_thread():  # Python takes handlers only there
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def silence_lightning_signals(trainer: pl.Trainer) -> None:
    """Keep Lightning from taking SIGTERM itself.

    Its handler runs a collective operation inside the signal handler, which meets another one of the training step on the
    other processes, and its loop broadcasts a tensor and waits for the GPU before every step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
