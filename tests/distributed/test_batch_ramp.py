"""A batch that grows is the same under every layout: uneven shares, micro-batches that count nothing, and going on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.batch_ramp.spec import Linear
from llmfactory.run.fit import fit

LAYOUTS = [Mesh(dp_replicate=2), Mesh(dp_shard=2), Mesh(tp=2)]
STEPS = 2
"""Under each of them, one after the other; of 3, 5, 7, 7, 9 and 9 rows."""
RAMP = Linear(start=3, increment=2, rows=21)


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
