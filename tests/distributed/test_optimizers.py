"""Each optimizer makes the same steps under layouts that cut what it updates."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adam, Adamw, Adamw8bit, Lamb, Lion, Muon, OptimSpec, ScheduleFree, Sgd
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

OPTIMIZERS: dict[str, OptimSpec] = {
    "adafactor": Adafactor(lr=1e-2, schedule=Constant(), momentum=0.5, clip_norm=0.05),
    "lamb": Lamb(lr=1e-2, schedule=Constant(), weight_decay=0.1, clip_norm=0.05),
    "adamw8bit": Adamw8bit(lr=1e-3, schedule=Constant(), block_size=5, least_size=0, clip_norm=0.05),
    "groups": Adamw(
        lr=1e-3,
        schedule=Constant(),
        clip_norm=0.05,
        clip_value=2e-3,
        layer_decay=0.5,
        lr_factors={"embedding": 0.3},
        weight_decays={"norm": 0.2},
    ),
    "adam": Adam(lr=1e-3, schedule=Constant(), weight_decay=0.1, clip_norm=0.05),
    "lion": Lion(lr=1e-3, schedule=Constant(), clip_norm=0.05),
    "muon": Muon(lr=1e-3, schedule=Constant(), clip_norm=0.05),
    "schedule_free": ScheduleFree(lr=1e-3, schedule=Constant(), clip_norm=0.05),
    "sgd": Sgd(lr=0.1, schedule=Constant(), clip_norm=0.05),
}
LAYOUTS = {"zero3": Mesh(dp_shard=2), "tensor": Mesh(tp=2)}


def make(folder: Path, optim: OptimSpec, layout: Mesh) -> Job:
    changes = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__save_every": None, "model__vocab_size": 258}
    return toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), **changes)


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.mark.dist
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    weights = train(make(tmp_path, OPTIMIZERS[name], Mesh()), tmp_path / "one")
    for layout, mesh in LAYOUTS.items():
        for found in pool.run(2, train, make(tmp_path, OPTIMIZERS[name], mesh), tmp_path / layout):
            for key, weight in weights.items():
                assert (found[key] - weight).norm() <= 1e-9 * weight.norm(), (layout, key)
