"""The held-out loss: over the first rows while training, over all of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from llmfactory.parallel.mesh import World
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.survey import surveyed
from llmfactory.run.display import Display
from llmfactory.run.progress import Progress
from llmfactory.stage.evaluate import Measure
from llmfactory.stage.training import TrainingStage
from llmfactory.tracking.tracker import Tracker

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

BySource = Mapping[str, Iterable["Batch"]]
"""Batches of each source of a mixture; those of one source under no name."""
Measuring = Callable[[int | None], Measure | None]
"""The model as it stands on the first so many held-out rows (None: on all), on all processes; None: there are none."""


def held_out_measure(stage: TrainingStage, batches: BySource, strategy: MeshStrategy) -> Measure | None:
    """The objective over all target tokens of these batches, on all processes, by the model as it lies; None: there are none."""
    return Measure.of({name: _measured(stage, some, strategy) for name, some in batches.items()})


@torch.no_grad()
def _measured(stage: TrainingStage, batches: Iterable[Batch], strategy: MeshStrategy) -> Measure:
    world, plain = strategy.world, stage.root.measure
    counts: dict[str, float] = dict.fromkeys((*plain.terms, *plain.watched), 0.0)
    sums = {name: torch.zeros((), dtype=torch.float64, device=world.device) for name in counts}
    stage.root.eval()
    if plain.surveys:  # it must have seen all of them before it can say anything
        shares = [(_on(batch, world), strategy.share) for batch in batches]
        batches = [batch for batch, _ in surveyed(shares, strategy.survey, world)]
    for batch in batches:
        for name, count in stage.count(batch).items():
            if name in counts and world.counts:
                counts[name] += count
        for name, value in strategy.evaluate(_on(batch, world)).items():
            sums[name] += value
    stage.root.train()
    names = list(counts)
    totals = world.sum_numbers([*(sums[name].item() for name in names), *(counts[name] for name in names)])
    return Measure(dict(zip(names, totals, strict=False)), dict(zip(names, totals[len(names) :], strict=True)), plain)


def _on(batch: Batch, world: World) -> Batch:
    return {name: field.to(world.device) for name, field in batch.items()}


class Evaluating(pl.Callback):
    """Every `every` steps (None: never), on `rows` held-out rows (None: on all)."""

    def __init__(
        self,
        progress: Progress,
        measure: Measuring,
        tracker: Tracker,
        display: Display,
        *,
        every: int | None,
        rows: int | None,
    ) -> None:
        self.progress, self.measure = progress, measure
        self.tracker, self.display, self.every, self.rows = tracker, display, every, rows

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every is None or self.progress.step % self.every:
            return
        assert isinstance(stage, TrainingStage)
        with self.progress.watch.paused(), stage.averaged():
            found = self.measure(self.rows)
        if found is not None:
            self.progress.evaluated(found.loss)
            watched = found.watched()
            self.tracker.log(self.progress.step, found.losses() | watched)
            self.display.update(self.progress.step, {"held_out_loss": found.loss, **watched})
