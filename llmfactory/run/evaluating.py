"""The held-out loss: over the first rows while training, over all of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.display import Display
from llmfactory.run.progress import Progress
from llmfactory.stage.evaluate import Measure
from llmfactory.stage.pretrain import PretrainStage
from llmfactory.tracking.tracker import Tracker

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

Batches = Callable[[int | None], Iterable["Batch"]]
"""This process's share of the first so many held-out rows (None: of all), in order, in batches."""


@torch.no_grad()
def held_out_measure(stage: PretrainStage, batches: Iterable[Batch], strategy: MeshStrategy) -> Measure | None:
    """The objective over all target tokens of these batches, on all processes, by the model as it lies; None: there are none."""
    world, plain = strategy.world, stage.root.measure
    counts: dict[str, float] = dict.fromkeys(plain.terms, 0.0)
    sums = {name: torch.zeros((), dtype=torch.float64, device=world.device) for name in plain.terms}
    stage.root.eval()
    for batch in batches:
        for name, count in stage.count(batch).items():
            if name in counts and world.counts:
                counts[name] += count
        for name, value in strategy.evaluate({key: field.to(world.device) for key, field in batch.items()}).items():
            sums[name] += value
    stage.root.train()
    names = list(counts)
    totals = world.sum_numbers([*(sums[name].item() for name in names), *(counts[name] for name in names)])
    if not all(totals[len(names) :]):
        return None
    return Measure(dict(zip(names, totals, strict=False)), dict(zip(names, totals[len(names) :], strict=True)), plain)


def held_out_loss(stage: PretrainStage, batches: Iterable[Batch], strategy: MeshStrategy) -> float | None:
    """The loss over all target tokens of these batches; None if there are none."""
    found = held_out_measure(stage, batches, strategy)
    return None if found is None else found.loss


class Evaluating(pl.Callback):
    """Every `every` steps (None: never), on `rows` held-out rows (None: on all)."""

    def __init__(
        self,
        progress: Progress,
        strategy: MeshStrategy,
        batches: Batches,
        tracker: Tracker,
        display: Display,
        *,
        every: int | None,
        rows: int | None,
    ) -> None:
        self.progress, self.strategy, self.batches = progress, strategy, batches
        self.tracker, self.display, self.every, self.rows = tracker, display, every, rows

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every is None or self.progress.step % self.every:
            return
        assert isinstance(stage, PretrainStage)
        with self.progress.watch.paused():
            loss = held_out_loss(stage, self.batches(self.rows), self.strategy)
        if loss is not None:
            self.progress.evaluated(loss)
            self.tracker.log(self.progress.step, {"held_out_loss": loss})
            self.display.update(self.progress.step, {"held_out_loss": loss})
