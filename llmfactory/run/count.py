"""Training of models that count instead of learning by gradients: one pass over the training rows, one checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmfactory.checkpoint import io
from llmfactory.config.spec import Job
from llmfactory.data.loader import held_out_batches
from llmfactory.data.prepared import Prepared
from llmfactory.model.skeleton import Counted
from llmfactory.parallel.mesh import device_type, open_world
from llmfactory.run.display import Display
from llmfactory.run.environment import environment
from llmfactory.run.fit import Fitted, attach
from llmfactory.stage.initial import fill
from llmfactory.stage.rows import Data, task_rows
from llmfactory.stage.spec import TrainingSpec
from llmfactory.tracking.tracker import Tracker

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


@torch.no_grad()
def count(job: Job, data: Data, folder: Path, tracker: Tracker, display: Display) -> Fitted:
    """The model of `job` fitted to `data`, in `folder/checkpoints`; what a run before has counted is taken from there."""
    assert isinstance(job.stage, TrainingSpec)
    assert isinstance(data, Prepared)  # a rule: labelled examples are not counted
    model, rows = job.model.build(), task_rows(job, job.stage.trained(job), data, "train")
    assert isinstance(model, Counted)
    checkpoint, seconds = io.latest(folder / "checkpoints"), 0.0
    with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
        if checkpoint is None:

            def batches() -> Iterator[Batch]:
                for number, batch in enumerate(held_out_batches(rows, batch_size=job.trainer.batch_size)):
                    display.preparing("counting", min((number + 1) * job.trainer.batch_size, len(rows)), len(rows))
                    yield batch

            before = time.perf_counter()
            model.count(batches(), rows.isolated)
            seconds = time.perf_counter() - before
            state = {"environment": environment(world.device, world.size), "train_seconds": seconds}
            checkpoint = io.save(folder / "checkpoints", 1, model, None, state, world, partial(attach, job, data))
        else:
            display.note(f"counted already: {checkpoint}")
            fill(model, checkpoint)
            seconds = io.read_state(checkpoint)["train_seconds"]
        model.to(world.device).eval()
    return Fitted(
        model,
        step=1,
        best_loss=None,
        best_step=None,
        stopped="finished",
        train_seconds=seconds,
        tokens_per_second=rows.targets / max(seconds, 1e-9),
        skipped_steps=0,
        checkpoint=checkpoint,
    )
