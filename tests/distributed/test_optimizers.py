"""Each optimizer makes the same steps under layouts that cut what it updates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config import rules
from llmfactory.config.spec import Job
from llmfactory.launch.spec import Local
from llmfactory.model.head.spec import Lm
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adam, Adamw, Adamw8bit, Lamb, Lion, Muon, OptimSpec, ScheduleFree, Sgd, Soap
from llmfactory.optim.width.spec import Mup
from llmfactory.parallel.spec import Mesh, Offload, Zero
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.spec import Lora
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
    "mup": Adamw(
        lr=1e-2,
        schedule=Constant(),
        clip_norm=0.05,
        width=Mup(base={"dim": 8, "attention.n_heads": 2, "attention.n_kv_heads": 1, "ffn.hidden": 12}),
    ),
    "soap": Soap(lr=1e-3, schedule=Constant(), refresh_every=1, clip_norm=0.05),
}
SHARDS, TENSOR = Mesh(dp_shard=2), Mesh(tp=2)
LAYOUTS = {
    "ddp": Mesh(dp_replicate=2),
    "zero1": Mesh(dp_shard=2, zero=Zero.optimizer),
    "zero2": Mesh(dp_shard=2, zero=Zero.gradients),
    "zero3": SHARDS,
    "offload": Mesh(dp_shard=2, offload=Offload.cpu),
    "tp": TENSOR,
    "tp_sp": Mesh(tp=2, sequence_parallel=True, loss_parallel=True),
    "cp": Mesh(cp=2),
    "pp": Mesh(pp=2),
    "hsdp": Mesh(dp_replicate=2, dp_shard=2),
    "tp x zero3": Mesh(dp_shard=2, tp=2),
    "pp x zero1": Mesh(dp_shard=2, zero=Zero.optimizer, pp=2),
    "pp x tp": Mesh(pp=2, tp=2),
}
"""Two and four processes."""
LORA = Lora(rank=3, alpha=24.0, start=Start.gaussian, b_lr_ratio=2.0)


def make(folder: Path, optim: OptimSpec, layout: Mesh, adapters: bool = False) -> Job:
    changes = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__save_every": None, "model__vocab_size": 258}
    changes |= {"peft": LORA} if adapters else {}
    changes |= {"model__head": Lm(tied=False)} if isinstance(optim.width, Mup) else {}
    # In one process whole steps, so that several micro-batches, whose gradients add up, are compared with them.
    changes |= {"trainer__micro_batch_size": 2, "launch": Local(processes=processes(layout))} if layout != Mesh() else {}
    return toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), trainer__keep_best=False, **changes)


def processes(layout: Mesh) -> int:
    return (layout.dp_replicate or 1) * (layout.dp_shard or 1) * layout.cp * layout.tp * layout.pp


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def compare(folder: Path, name: str, layouts: dict[str, Mesh], adapters: bool = False) -> dict[str, float]:
    """By layout, the largest relative difference of a weight from those of a single process."""
    weights = train(make(folder, OPTIMIZERS[name], Mesh(), adapters), folder / "one")
    found: dict[str, float] = {}
    for number, (layout, mesh) in enumerate(layouts.items()):
        job = make(folder, OPTIMIZERS[name], mesh, adapters)
        assert not rules.check(job), (name, layout)
        apart = [
            float((whole[key] - weight).norm() / weight.norm().clamp_min(1e-3))
            for whole in pool.run(processes(mesh), train, job, folder / str(number))
            for key, weight in weights.items()
        ]
        found[layout] = max(apart)
    return found


@pytest.mark.dist
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    found = compare(tmp_path, name, {"zero3": SHARDS, "tp": TENSOR})
    assert max(found.values()) <= 1e-9, found


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_under_other_layouts(name: str, tmp_path: Path) -> None:
    """Whatever the optimizer keeps: from one process to pieces of weights, on to others, and back."""
    layouts = [Mesh(), SHARDS, TENSOR, Mesh(pp=2), Mesh()]

    def to(step: int, mesh: Mesh) -> Job:
        job = make(tmp_path, OPTIMIZERS[name], mesh)
        return dataclasses.replace(job, trainer=dataclasses.replace(job.trainer, max_steps=step, save_every=None))

    weights = train(to(len(layouts), Mesh()), tmp_path / "one")
    for number, mesh in enumerate(layouts, start=1):
        found = pool.run(processes(mesh), train, to(number, mesh), tmp_path / "moved")
    for key, weight in weights.items():
        assert (found[0][key] - weight).norm() <= 1e-9 * weight.norm().clamp_min(1e-3), key


def magnitudes(job: Job, folder: Path) -> dict[str, float]:
    """Of the last step, part by part."""
    tracker = Memory()
    fit(job, prepared(job), folder, tracker, Notes())
    return {name: value for name, value in tracker.rows[3].items() if "/" in name}


@pytest.mark.dist
def test_parts_are_measured_as_in_one_process(tmp_path: Path) -> None:
    optim = Adamw(lr=1e-3, schedule=Constant(), clip_norm=0.05)
    jobs = [make(tmp_path, optim, mesh) for mesh in (Mesh(), SHARDS, TENSOR, Mesh(pp=2))]
    whole, *others = [dataclasses.replace(job, trainer=dataclasses.replace(job.trainer, log_parts=True)) for job in jobs]
    expected = magnitudes(whole, tmp_path / "one")
    assert len(expected) == 8  # the head borrows the embedding
    for number, job in enumerate(others):
        for found in pool.run(2, magnitudes, job, tmp_path / str(number)):
            assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.dist
@pytest.mark.matrix
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_every_layout(name: str, adapters: bool, tmp_path: Path) -> None:
    """Of the whole model, or of adapters beside it."""
    if adapters and isinstance(OPTIMIZERS[name].width, Mup):
        assert rules.check(make(tmp_path, OPTIMIZERS[name], SHARDS, adapters))  # it is of whole models
        return
    found = compare(tmp_path, name, LAYOUTS, adapters)
    assert max(found.values()) <= 1e-9, found
