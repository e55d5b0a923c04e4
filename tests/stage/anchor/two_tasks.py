"""A model that has learned one text, and goes on with another that has nothing to do with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.data.source.spec import Files
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import Fitted, fit
from llmfactory.run.plain_file import write_yaml
from llmfactory.stage.anchor.spec import AnchorSpec
from llmfactory.stage.evaluate import measure
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Fisher, Pretrain


def numbers(folder: Path) -> str:
    """Counting, up and down."""
    path = folder / "numbers.txt"
    ways = [" ".join(str((start + k * step) % 100) for k in range(11)) for start in range(50) for step in (1, -1, 3)]
    path.write_text("\n---\n".join(ways) + "\n", encoding="utf-8")
    return str(path)


def old_job(folder: Path, **changes: Any) -> Job:
    settings = {"trainer__eval_every": None, "trainer__save_every": None, "optim__schedule__horizon": None, **changes}
    return toy_job(folder, **{"trainer__max_steps": 60, "trainer__batch_size": 16, **settings})


def new_job(folder: Path, anchor: AnchorSpec, **changes: Any) -> Job:
    job = old_job(folder, **{"trainer__max_steps": 40, **changes})
    data = replace(job.data, source=Files(files=[numbers(folder)], split_on="---"))
    stage = Pretrain(objective=job.stage.objective, anchor=anchor)  # type: ignore[attr-defined]
    return replace(job, data=data, init=str(folder / "old"), stage=stage)


def train(job: Job, folder: Path) -> tuple[Fitted, Memory]:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    write_yaml(folder / "config.yaml", to_plain(job))
    return fitted, tracker


def learned(folder: Path, **changes: Any) -> None:
    """`folder/old`: a run that has learned the first text, and what of it matters."""
    job = old_job(folder, **changes)
    train(job, folder / "old")
    done = replace(job, init=str(folder / "old"), stage=Fisher(rows=64))
    done.stage.build().run(done, None)


def loss(fitted: Fitted, job: Job) -> float:
    """On all held-out rows of a job's data."""
    objective = job.stage.objective.build()  # type: ignore[attr-defined]
    rows = task_rows(job, objective, prepared(job), "held_out")
    found = measure(fitted.model, objective, rows, job.precision.build("cpu"), World(torch.device("cpu")), 16)
    assert found is not None
    return found.loss
