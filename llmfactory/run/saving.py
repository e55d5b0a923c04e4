"""When checkpoints are written, which are kept, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from llmfactory.checkpoint import io
from llmfactory.checkpoint.background import Background
from llmfactory.checkpoint.files import require_space
from llmfactory.checkpoint.retention import prune
from llmfactory.checkpoint.tensors import Contents, model_tensors, size_in_bytes, united
from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import World
from llmfactory.parallel.shard import reshard
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.progress import Progress
from llmfactory.run.spec import Trainer
from llmfactory.stage.training import TrainingStage


class Saving(pl.Callback):
    """Writes a checkpoint every `save_every` steps, at a new lowest held-out loss, when the run is stopped, and at its end.

    `resume` is the checkpoint to go on from, `record` what state.json holds beside the progress, `attach` writes what
    travels along (tokenizer, config), `more` gives what state.json holds of that moment besides, and what `keep` gives at that
    moment writes what else the run has to remember.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        progress: Progress,
        strategy: MeshStrategy,
        formats: MeshPrecision,
        *,
        resume: Path | None,
        record: dict[str, Any],
        attach: Callable[[Path], None],
        samples: Callable[[int], int],
        keep: Callable[[], Callable[[Path], None]] = lambda: lambda path: None,
        more: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.folder, self.spec, self.progress, self.strategy, self.formats = folder, trainer, progress, strategy, formats
        self.resume, self.record, self.attach, self.keep = resume, record, attach, keep
        self.more = more
        self.samples = samples
        """Rows that so many steps have read."""
        self.last: Path | None = resume
        self.background: Background | None = None

    def on_fit_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, TrainingStage)
        world = self.strategy.world
        model, optimizer = self.strategy.whole(stage.model, self._optimizer(trainer), everywhere=self.resume is not None)
        state = stage.optim.state_bytes(4) / 4  # as a share of the weights
        copies = 1 + state + (0 if stage.average is None else 1 + stage.optim.average.copies())
        needed = int(copies * size_in_bytes(united(model_tensors(model), world)))

        def make_room() -> None:
            io.clean(self.folder)
            require_space(self.folder, needed, "a checkpoint of this run")

        world.once(make_room)
        if stage.average is not None:
            stage.average.begin(stage.model, optimizer)
        if self.resume is not None:
            io.load(self.resume, model, optimizer, world, stage.average)
            self.strategy.take(stage.model, model, self._optimizer(trainer))
            if self.formats.loss_scale is not None:
                self.formats.loss_scale.load(io.read_state(self.resume)["loss_scale"])
        if self.spec.save_async:
            self.background = Background(world.apart(self.strategy.layout.timeout_s), self._give_up)

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = self.progress.step, self.spec.save_every
        last = trainer.should_stop or step >= self.spec.max_steps
        best = self.spec.keep_best and step == self.progress.best_step == self.progress.evaluated_step
        if last or (every is not None and (best or step % every == 0)):
            assert isinstance(stage, TrainingStage)
            self.progress.watch.stop()
            self._finish()
            self.strategy.check()
            with stage.averaged():
                self._save(stage, self._optimizer(trainer))
            if last:
                self._finish()
            else:
                self.progress.watch.read()

    def on_exception(self, trainer: pl.Trainer, stage: pl.LightningModule, exception: BaseException) -> None:
        """A checkpoint that is under way is good: let it be written. A second Ctrl-C does not wait for it."""
        if isinstance(exception, Exception):
            try:
                self._finish()
            except UserError as error:
                raise UserError(f"{exception}; besides, {error}") from exception

    def _save(self, stage: TrainingStage, optimizer: Optimizer) -> None:
        reshard(stage.root)
        step = self.progress.step
        state = {**self.record, **self.more(), **self.progress.state(), "samples": self.samples(step)}
        if self.formats.loss_scale is not None:
            state["loss_scale"] = self.formats.loss_scale.state()
        if stage.average is not None:
            state["average"] = stage.average.state()
        contents = Contents.of(*self.strategy.whole(stage.model, optimizer, everywhere=False), stage.average)
        best_step = self.progress.best_step if self.spec.keep_best else None
        remember = self.keep()

        def attach(path: Path) -> None:
            self.attach(path)
            remember(path)

        def write(world: World) -> Path:
            written = io.write(self.folder, step, contents, state, world, attach)
            world.once(lambda: prune(self.folder, self.spec.keep_last, best_step))
            return written

        if self.background is None:
            with io.quiet():
                self.last = write(self.strategy.world)
        else:
            contents = contents.copied()
            self.background.start(write)

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is; says if it could not be."""
        if self.background is not None:
            self.last = self.background.finish() or self.last

    def _give_up(self) -> None:
        """End the run after its current step, on all processes; then all of them hear of the failure."""
        self.strategy.stop_asked = True

    @staticmethod
    def _optimizer(trainer: pl.Trainer) -> Optimizer:
        return trainer.optimizers[0]
