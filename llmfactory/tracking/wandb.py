"""Weights & Biases, beside metrics.csv.

The run's id is kept in the run folder, so that a resumed run goes on under the same id. Metrics carry their optimizer step
as a metric of their own (`define_metric`): after a rewind, steps that are done again are sent again, which W&B's own step
counter would refuse.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import wandb

from llmfactory.core.errors import UserError
from llmfactory.tracking.csv import CsvTracker
from llmfactory.tracking.spec import Wandb, WandbMode
from llmfactory.tracking.tracker import Tracker


class WandbTracker(Tracker):
    """One W&B run for all attempts of a run folder."""

    def __init__(self, spec: Wandb, folder: Path, config: dict[str, Any]) -> None:
        self.table = CsvTracker(folder)
        home = folder / "wandb"
        home.mkdir(exist_ok=True)
        id_file = home / "id.txt"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        try:
            self.run = wandb.init(
                project=spec.project,
                entity=spec.entity,
                mode="online" if spec.mode is WandbMode.online else "offline",
                tags=spec.tags,
                dir=folder,
                id=id_file.read_text(),
                name=f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name,  # a sweep's member
                # offline nothing can be asked: pieces with the same id are joined when they are synced
                resume="allow" if spec.mode is WandbMode.online else None,
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.errors.Error, ValueError) as error:
            raise UserError(f"Weights & Biases: {error} (tracking.mode=offline needs no login)") from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.table.log(step, metrics)
        self.run.log({**metrics, "step": step})

    def rewind(self, step: int) -> None:
        self.table.rewind(step)

    def finish(self, summary: dict[str, float]) -> None:
        self.table.finish(summary)
        self.run.summary.update(summary)
        self.run.finish()
