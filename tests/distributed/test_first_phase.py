"""Steps in which only the tables of tokens learn: the same under every layout that shares them out."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.objective.spec import Causal
from llmfactory.parallel.spec import Mesh, Zero
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit
from llmfactory.stage.spec import Pretrain

LAYOUTS = {
    "copies": Mesh(dp_replicate=2),
    "zero1": Mesh(dp_shard=2, zero=Zero.optimizer),
    "zero3": Mesh(dp_shard=2),
    "tensor": Mesh(tp=2),
}


def make(folder: Path, layout: Mesh) -> Job:
    stage = Pretrain(objective=Causal(), embeddings_only_steps=2)
    changes = {"trainer__max_steps": 4, "trainer__eval_every": 4, "trainer__save_every": None, "model__vocab_size": 258}
    return toy_job(folder, stage=stage, parallel=layout, precision=Fp64(), **changes)


def train(job: Job, folder: Path) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    losses = {step: row["loss"] for step, row in tracker.rows.items()}
    return losses, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.mark.dist
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_steps_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    losses, weights = train(make(tmp_path, Mesh()), tmp_path / "one")
    for result in pool.run(2, train, make(tmp_path, LAYOUTS[name]), tmp_path / "two"):
        if result[0]:  # rank 0 keeps them
            assert result[0] == pytest.approx(losses, rel=1e-9)
        for key, weight in weights.items():
            assert (result[1][key] - weight).norm() <= 1e-9 * weight.norm(), key
