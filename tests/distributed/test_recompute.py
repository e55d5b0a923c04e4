"""Blocks that are computed again in part, every second one, or within a budget: the same steps under layouts that cut them; and the
optimizer's state on disk, resumed.

One start of the processes serves all layouts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.model.attention.spec import Gqa
from llmfactory.parallel.spec import Mesh, Offload
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

ZERO3, TENSOR, CONTEXT, PIPELINE = Mesh(dp_shard=2), Mesh(tp=2, sequence_parallel=True), Mesh(cp=2), Mesh(pp=2)
LAYOUTS = {
    "zero3, products": dataclasses.replace(ZERO3, recompute=True, recompute_keep=["products"]),
    "zero3, budget": dataclasses.replace(ZERO3, recompute=True, recompute_budget_mb=0.02),
    "tensor, products": dataclasses.replace(TENSOR, recompute=True, recompute_keep=["products", "attention"]),
    "tensor, budget": dataclasses.replace(TENSOR, recompute=True, recompute_budget_mb=0.02),
    "context, attention": dataclasses.replace(CONTEXT, recompute=True, recompute_keep=["attention"], recompute_every=2),
    "pipeline, products": dataclasses.replace(PIPELINE, recompute=True, recompute_keep=["products"]),
}


def make(folder: Path, layout: Mesh, steps: int = 3) -> Job:
    changes = {"trainer__max_steps": steps, "trainer__eval_every": None, "trainer__save_every": None, "model__vocab_size": 258}
    micro = {"trainer__micro_batch_size": 2}
    heads = Gqa(n_heads=4, n_kv_heads=2)
    return toy_job(folder, parallel=layout, precision=Fp64(), model__attention=heads, **micro, **changes)


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def all_of(jobs: dict[str, Job], folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {name: train(job, folder / name.replace(", ", "_")) for name, job in jobs.items()}
    disk = dataclasses.replace(ZERO3, offload=Offload.disk, offload_dir=str(folder / "files"))
    for steps in (1, 3):
        found["state on disk, resumed"] = train(make(folder, disk, steps), folder / "disk")
    assert not list((folder / "files").iterdir()), "files go with the process"
    return found


@pytest.mark.dist
def test_the_steps_are_those_of_one_process(tmp_path: Path) -> None:
    weights = train(make(tmp_path, Mesh()), tmp_path / "one")
    jobs = {name: make(tmp_path, layout) for name, layout in LAYOUTS.items()}
    for found in pool.run(2, all_of, jobs, tmp_path):
        assert len(found) == len(LAYOUTS) + 1
        for name, its in found.items():
            for key, weight in weights.items():
                assert (its[key] - weight).norm() <= 1e-9 * weight.norm(), (name, key)
