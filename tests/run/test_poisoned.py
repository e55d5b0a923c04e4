"""What a guard is for: a run that learns from broken documents ends clearly worse, one with a guard like a clean one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from poisoned import held_out, letters_job, repeating, run
from toy_job import prepared

from llmfactory.config.spec import Job
from llmfactory.guard.spec import GuardSpec, None_, Rewind, Skip
from llmfactory.optim.schedule.spec import Cosine
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.mesh import World
from llmfactory.run import decisions
from llmfactory.run.supply import RowSupply

GUARDS: dict[str, GuardSpec] = {
    "skip": Skip(),
    "rewind": Rewind(back=4, before=0, after=0),
    "rewind_around": Rewind(back=4, before=2, after=12),
}


class Poisoned:
    """Runs whose steps [first, last), from 0, have nothing but broken documents; each run once."""

    def __init__(self, folder: Path, first: int, last: int, watch: dict[str, Any], **changes: Any) -> None:
        self.folder, self.watch, self.changes = folder, watch, changes
        self.losses: dict[str, float] = {}
        job = self.job("clean")
        supply = RowSupply(job, job.stage.trained(job), prepared(job), World(torch.device("cpu")), 0)
        rows = np.concatenate([supply.steps.step(step)[1] for step in range(first, last)])
        self.broken = sorted({document for row in rows for document in supply.rows.documents(int(row))})
        assert len(self.broken) == len(rows) <= 0.05 * len(supply.rows)
        self.samples = set(range(first * job.trainer.batch_size, last * job.trainer.batch_size))

    def job(self, name: str) -> Job:
        guard = GUARDS.get(name, None_())
        return letters_job(self.folder, replace(guard, **self.watch) if name in GUARDS else guard, **self.changes)

    def loss(self, name: str) -> float:
        """On held-out documents, none of which is broken, at the end: "clean", "none" (broken, nobody watches), or of a guard."""
        if name not in self.losses:
            job = self.job(name)
            data = prepared(job)
            fitted = run(job, self.folder / name, data if name == "clean" else repeating(data, self.broken))
            self.losses[name] = held_out(fitted)
        return self.losses[name]

    def check(self, name: str) -> None:
        clean = self.loss("clean")
        assert self.loss("none") > 1.05 * clean
        assert abs(self.loss(name) - clean) <= 0.01 * clean
        lines = decisions.read_lines(self.folder / name / decisions.FILE)
        found = {number for line in lines for row in line["worst"] for number in row["documents"]}
        passed_over = {number for line in lines for number in range(*line.get("left_out", line["samples"]))}
        if name == "rewind_around":  # what is left out beside the spike is never looked at
            assert found < set(self.broken)
            assert passed_over > self.samples
            assert len(lines) == 1
        else:
            assert sorted(found) == self.broken
            assert passed_over == self.samples


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    return Poisoned(tmp_path_factory.mktemp("few"), 53, 57, {"window": 12, "least": 8})


@pytest.mark.parametrize("name", ["skip", "rewind"])
def test_broken_documents_are_found_and_do_no_harm(name: str, few: Poisoned) -> None:
    """All of them by number, and no other; unguarded, the loss is more than 5 % higher, guarded, within 1 %."""
    few.check(name)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    optim = Adamw(lr=0.02, schedule=Cosine(warmup_steps=4, horizon=260), clip_norm=None)
    return Poisoned(
        tmp_path_factory.mktemp("many"),
        224,
        234,
        {"window": 64, "least": 64, "limit": 20},
        count=2600,
        trainer__max_steps=240,
        optim=optim,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip", "rewind", "rewind_around"])
def test_many_broken_documents_in_a_longer_run(name: str, many: Poisoned) -> None:
    many.check(name)
