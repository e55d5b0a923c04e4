"""What a reference says of every answer, asked once before training and kept in a file beside the run.

The reference is the model as training finds it: filled with its first weights, laid out as it will be trained, so that whatever
layout trains a model can ask it. Each process takes a share of the rows; what it finds is added up over all of them. The files are
named by a fingerprint of the data and the weights; a run that goes on reads them, since its weights are no longer the first ones.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.form.referenced import ReferencedRows
from llmfactory.objective.answers import AnswersObjective, Asked
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.display import Display
from llmfactory.stage.base import base_of
from llmfactory.stage.initial import checkpoint_of
from llmfactory.stage.referencing import asked
from llmfactory.stage.rows import Data
from llmfactory.stage.training import TrainingStage

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

AT_ONCE = 8
"""Rows that a process asks of at once where the config names no micro-batch size."""


class Asking(pl.Callback):
    """Before the first step. `rows`: those that are to know, by part. `resume`: the run goes on."""

    def __init__(
        self,
        job: Job,
        data: Data,
        rows: dict[str, ReferencedRows],
        strategy: MeshStrategy,
        display: Display,
        folder: Path,
        resume: bool,
    ) -> None:
        self.job, self.data, self.rows, self.strategy, self.display, self.resume = job, data, rows, strategy, display, resume
        self.folder = folder / "reference"

    def on_fit_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, TrainingStage)
        world = self.strategy.world
        key = world.broadcast(self._key() if world.rank == 0 else None)
        for part, rows in self.rows.items():
            path = self.folder / f"{part}_{key}.npy"
            if not world.broadcast(path.is_file()):
                if self.resume:
                    raise UserError(
                        f"{path} is gone: it holds what the model said before this run began, which nobody can ask it any more. "
                        f"Put it back, or begin anew under another name="
                    )
                found = self._asked(stage, rows, part)
                world.once(lambda path=path, found=found: _write(path, found))  # type: ignore[misc]
                rows.logps_RK = found
            else:
                rows.logps_RK = np.load(path, allow_pickle=False)

    def _key(self) -> str:
        job = self.job
        checkpoint = None if job.init is None else checkpoint_of(job, "starting")
        weights = base_of(job.init, checkpoint, job.seed)
        plain = to_plain(job)
        told = [
            self.data.name,
            weights.get("fingerprint", weights),
            *(plain[part] for part in ("model", "data", "precision", "peft")),
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @torch.no_grad()
    def _asked(self, stage: TrainingStage, rows: ReferencedRows, part: str) -> NDArray[np.float64]:
        """[R, K]."""
        world, root, objective = self.strategy.world, stage.root, stage.objective
        assert isinstance(objective, AnswersObjective)
        measure, training = root.measure, root.training
        root.eval()

        def ask(batch: Batch, answers: int) -> Tensor:
            root.measure = Asked(answers)
            return self._one(batch, answers)

        def progress(done: int) -> None:
            self.display.preparing(f"asking the reference ({part.replace('_', ' ')})", done, len(rows))

        place = world.data_rank, world.data_size
        found = asked(rows.rows, objective, ask, world, place, self.job.trainer.micro_batch_size or AT_ONCE, progress)
        root.measure = measure
        root.train(training)
        return found

    def _one(self, batch: Batch, answers: int) -> Tensor:
        """[B, K], this process's part."""
        device = self.strategy.world.device
        batch = {name: field.to(device) for name, field in batch.items()}
        nothing = torch.zeros(len(batch["labels"]), answers, dtype=torch.float64, device=device)
        return nothing + self.strategy.evaluate(batch).get("answers", nothing)


def _write(path: Path, found: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, found, allow_pickle=False)
    partial.replace(path)
