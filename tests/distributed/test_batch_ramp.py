"""A batch that grows is the same under every layout: uneven shares, micro-batches that count nothing, and going on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.rules import check
from llmfactory.config.spec import Job
from llmfactory.launch.spec import Local
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import Mesh, Schedule, Zero
from llmfactory.precision.spec import Fp64
from llmfactory.run.batch_ramp.spec import Linear
from llmfactory.run.fit import fit

LAYOUTS = [Mesh(dp_replicate=2), Mesh(pp=2), Mesh(dp_shard=2), Mesh(tp=2)]
STEPS = 2
"""Under each of them, one after the other; of 3, 5, 7, 7, 9, 9, 9 and 9 rows: 2, 3 and more micro-batches of up to 2."""
RAMP = Linear(start=3, increment=2, rows=21)


PIPELINES = {
    "gpipe": Mesh(pp=2, schedule=Schedule.gpipe),
    "interleaved": Mesh(pp=2, schedule=Schedule.interleaved),
    "zero bubble": Mesh(pp=2, schedule=Schedule.zero_bubble),
    "zero bubble, V": Mesh(pp=2, schedule=Schedule.zero_bubble_v),
    "two copies": Mesh(pp=2, dp_replicate=2),
    "shards": Mesh(pp=2, dp_shard=2, zero=Zero.optimizer),
}
EVEN = Linear(start=4, rows=24)
"""4, 4, 8, 8 and then 12 or 13 rows: looped schedules want micro-batches of one row by twos."""


def make(folder: Path, layout: Mesh, steps: int) -> Job:
    few = {"trainer__max_steps": steps, "trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False}
    rows = {"trainer__batch_size": 9, "trainer__batch_ramp": RAMP, "trainer__micro_batch_size": 2}
    optim = Adamw(lr=1e-3, schedule=Constant(), clip_norm=0.05)
    return toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), model__vocab_size=258, **few, **rows)


def train(job: Job, folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    return tracker.rows, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.mark.dist
def test_steps_of_growing_batches_are_those_of_one_process(tmp_path: Path) -> None:
    last = STEPS * len(LAYOUTS)
    job = make(tmp_path, Mesh(), last)
    expected, weights = train(job, tmp_path / "one")
    sizes = job.trainer.sizes(32)
    assert len({sizes.rows(step) for step in range(last)}) >= 3
    for number, layout in enumerate(LAYOUTS, start=1):
        results = pool.run(2, train, make(tmp_path, layout, STEPS * number), tmp_path / "moved")
        for rows, _ in results:
            assert list(rows) == [STEPS * number - 1, STEPS * number], layout
            for step, row in rows.items():
                assert row["batch_rows"] == sizes.rows(step - 1)
                for key in ("loss", "grad_norm"):
                    assert row[key] == pytest.approx(expected[step][key], rel=1e-9), (layout, step, key)
    for _, found in results:
        for key, weight in weights.items():
            assert (found[key] - weight).norm() <= 1e-9 * weight.norm(), key


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_takes_growing_batches(name: str, tmp_path: Path) -> None:
    layout = PIPELINES[name]
    processes = layout.pp * layout.dp_replicate * layout.dp_shard
    rows = 13 if layout.fills_pipeline(13) else 12
    jobs = [make(tmp_path, of, 6) for of in (Mesh(), layout)]
    for job in jobs:
        job.model.n_layers = 4
        job.trainer.batch_size, job.trainer.batch_ramp, job.trainer.micro_batch_size = rows, EVEN, 1
    jobs[1].launch = Local(processes=processes)
    assert not check(jobs[1])
    one, weights = train(jobs[0], tmp_path / "one")
    others = pool.run(processes, train, jobs[1], tmp_path / "several")
    assert len({row["batch_rows"] for row in one.values()}) >= 3
    for curve, mine in others:
        assert list(curve) == list(one)
        for step, row in curve.items():
            for key in ("loss", "grad_norm", "batch_rows"):
                assert row[key] == pytest.approx(one[step][key], rel=1e-9), (step, key)
        assert weights.keys() & mine.keys()
        for key in weights.keys() & mine.keys():
            assert (mine[key] - weights[key]).norm() <= 1e-9 * weights[key].norm(), key
