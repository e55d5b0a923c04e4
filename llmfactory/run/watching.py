"""Metrics of the training steps: read from the device only at the steps that are logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.display import Display
from llmfactory.run.progress import Progress
from llmfactory.stage.training import TrainingStage
from llmfactory.tracking.tracker import Tracker

SHOWN = ("reward", "ungraded")
"""Of what has been read or written, what the screen shows too."""


class Watching(pl.Callback):
    """Logs the first step, every `every`-th and the last: loss, gradient norm, learning rate, tokens a second."""

    def __init__(
        self,
        progress: Progress,
        strategy: MeshStrategy,
        formats: MeshPrecision,
        tracker: Tracker,
        display: Display,
        every: int,
        drawn: Callable[[int], dict[str, float]] = lambda step: {},
    ) -> None:
        """`drawn`: what has been read of each source after so many steps."""
        self.progress, self.strategy, self.formats = progress, strategy, formats
        self.tracker, self.display, self.every, self.drawn = tracker, display, every, drawn

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        self.progress.watch.read()
        self.last = self.progress.tokens, self.progress.watch.seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(stage, TrainingStage)
        progress = self.progress
        progress.step = trainer.global_step
        progress.tokens += self.strategy.tokens
        if progress.step == 1 or progress.step % self.every == 0 or progress.step == trainer.max_steps:
            self._log(progress, stage)

    def _log(self, progress: Progress, stage: TrainingStage) -> None:
        self.strategy.check()
        measures = self.strategy.measures()
        if "loss" in measures:  # the objective's own term, which is the loss unless parts of the model add others
            own = measures.pop("loss")
            measures |= {} if measures.keys() <= set(stage.watched) else {"objective_loss": own}
        metrics = {
            "loss": self.strategy.loss.item(),
            "grad_norm": self.strategy.norm.item(),
            "lr": stage.lr_at(progress.step - 1),
            **measures,
            **stage.penalties(self.strategy.world),
        }
        if self.formats.loss_scale is not None:
            state = self.formats.loss_scale.state()
            metrics |= {"loss_scale": state["value"], "skipped_steps": state["skipped"]}
        tokens, seconds = progress.tokens, progress.watch.read()
        metrics["tokens_per_second"] = (tokens - self.last[0]) / max(seconds - self.last[1], 1e-9)
        self.last = tokens, seconds
        parts = {} if stage.magnitudes is None else stage.magnitudes.read(self.strategy.world)
        drawn = self.drawn(progress.step)
        self.tracker.log(progress.step, metrics | parts | drawn)
        self.display.update(progress.step, metrics | {name: drawn[name] for name in SHOWN if name in drawn})
