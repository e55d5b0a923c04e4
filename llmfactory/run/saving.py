"""When checkpoints are written, which are kept, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from llmfactory.checkpoint import io
from llmfactory.checkpoint.files import require_space
from llmfactory.checkpoint.retention import prune
from llmfactory.checkpoint.tensors import model_tensors, size_in_bytes, united
from llmfactory.parallel.shard import reshard
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.progress import Progress
from llmfactory.run.spec import Trainer
from llmfactory.stage.pretrain import PretrainStage


class Saving(pl.Callback):
    """Writes a checkpoint every `save_every` steps, at a new lowest held-out loss, when the run is stopped, and at its end.

    `resume` is the checkpoint to go on from, `record` what state.json holds beside the progress, `attach` writes what
    travels along (tokenizer, config).
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
    ) -> None:
        self.folder, self.spec, self.progress, self.strategy, self.formats = folder, trainer, progress, strategy, formats
        self.resume, self.record, self.attach = resume, record, attach
        self.last: Path | None = resume

    def on_fit_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, PretrainStage)
        needed = (1 + stage.optim.state_copies()) * size_in_bytes(united(model_tensors(stage.model), self.strategy.world))

        def make_room() -> None:
            io.clean(self.folder)
            require_space(self.folder, needed, "a checkpoint of this run")

        self.strategy.world.once(make_room)
        if self.resume is not None:
            model, optimizer = self.strategy.whole(stage.model, self._optimizer(trainer), everywhere=True)
            io.load(self.resume, model, optimizer, self.strategy.world)
            self.strategy.take(stage.model, model, optimizer)
            if self.formats.loss_scale is not None:
                self.formats.loss_scale.load(io.read_state(self.resume)["loss_scale"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = self.progress.step, self.spec.save_every
        last = trainer.should_stop or step >= self.spec.max_steps
        best = self.spec.keep_best and step == self.progress.best_step == self.progress.evaluated_step
        if last or (every is not None and (best or step % every == 0)):
            assert isinstance(stage, PretrainStage)
            self.progress.watch.stop()
            self._save(stage, self._optimizer(trainer))
            if not last:
                self.progress.watch.read()

    def _save(self, stage: PretrainStage, optimizer: Optimizer) -> None:
        self.strategy.check()
        reshard(stage.root)
        state = {**self.record, **self.progress.state(), "samples": self.progress.step * self.spec.batch_size}
        if self.formats.loss_scale is not None:
            state["loss_scale"] = self.formats.loss_scale.state()
        model, optimizer = self.strategy.whole(stage.model, optimizer, everywhere=False)
        self.last = io.save(self.folder, self.progress.step, model, optimizer, state, self.strategy.world, self.attach)
        best_step = self.progress.best_step if self.spec.keep_best else None
        self.strategy.world.once(lambda: prune(self.folder, self.spec.keep_last, best_step))

    @staticmethod
    def _optimizer(trainer: pl.Trainer) -> Optimizer:
        return trainer.optimizers[0]
