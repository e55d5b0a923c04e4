"""What DeepSpeed is told, and (where it is installed) that its engine makes the steps that ours makes."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, MissingExtra, UserError
from llmfactory.data.pack.spec import Document
from llmfactory.model.attention.spec import Gqa
from llmfactory.parallel.deepspeed import engine_config
from llmfactory.parallel.spec import Backend, DeepSpeed, Mesh, Offload, ParallelSpec, Zero
from llmfactory.precision.spec import Bf16Mixed
from llmfactory.run.fit import fit
from llmfactory.run.train import train as run_training

installed = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not installed, reason="needs the extra deepspeed")
LAYOUTS: dict[str, DeepSpeed] = {
    "1": DeepSpeed(stage=1),
    "2": DeepSpeed(stage=2),
    "3": DeepSpeed(stage=3),
    "offload": DeepSpeed(stage=2, offload=Offload.cpu),
    "infinity": DeepSpeed(stage=3, offload=Offload.cpu),
}


def test_what_the_engine_is_told() -> None:
    told = engine_config(DeepSpeed(stage=1), 0.5, pinned=True)
    assert told["zero_optimization"] == {"stage": 1}
    assert told["gradient_clipping"] == 0.5
    assert told["gradient_accumulation_steps"] == 1, "the engine divides by it"
    assert engine_config(DeepSpeed(stage=2), None, pinned=True)["gradient_clipping"] == 0.0
    host = {"device": "cpu", "pin_memory": True}
    told = engine_config(LAYOUTS["offload"], None, pinned=True)
    assert told["zero_optimization"] == {"stage": 2, "offload_optimizer": host}
    told = engine_config(LAYOUTS["infinity"], None, pinned=True)
    assert told["zero_optimization"] == {"stage": 3, "offload_optimizer": host, "offload_param": host}


@pytest.mark.parametrize(
    ("fields", "path", "repair"),
    [
        ({"stage": 0}, "stage", "stage=1"),
        ({"stage": 4}, "stage", "stage=3"),
        ({"stage": 1, "timeout_s": 0.0}, "timeout_s", "timeout_s=600"),
        ({"stage": 3, "offload": Offload.disk}, "offload", "offload=cpu"),
    ],
)
def test_bad_values(fields: dict[str, Any], path: str, repair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DeepSpeed(**fields)
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == (path, repair)


def test_processes_are_data_parallel() -> None:
    spec = DeepSpeed(stage=3, timeout_s=7.0, backend=Backend.gloo)
    assert spec.mesh() == Mesh(dp_replicate=None, timeout_s=7.0, backend=Backend.gloo)
    assert DeepSpeed(stage=3).degrees_for(6) == {"pp": 1, "dp_replicate": 6, "dp_shard": 1, "cp": 1, "tp": 1}


def test_without_the_package_the_extra_is_named_before_data_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = toy_job(tmp_path, parallel=DeepSpeed(stage=1))
    with pytest.raises(MissingExtra, match=r"pip install 'llmfactory\[deepspeed\]'"):
        run_training(job, {}, tmp_path)
    assert not (tmp_path / "cache").exists()


# ---- the engine itself


def make(folder: Path, parallel: ParallelSpec, **changes: Any) -> Job:
    """Documents of uneven lengths, three uneven micro-batches, weight decay, clipping, a schedule, two groups of parameters."""
    settings = {"trainer__batch_size": 7, "trainer__micro_batch_size": 2, "trainer__max_steps": 5, "trainer__eval_every": 2}
    settings |= {"optim__clip_norm": 0.5, "trainer__save_every": 3, "model__attention": Gqa(n_heads=4, n_kv_heads=2, bias=True)}
    return toy_job(folder, pack=Document(), parallel=parallel, **{**settings, **changes})


def train(job: Job, folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, torch.Tensor], float | None]:
    if isinstance(job.parallel, DeepSpeed):
        warnings.simplefilter("default")  # what the package imports warns of itself
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    return tracker.rows, {k: v.clone() for k, v in fitted.model.state_dict().items()}, fitted.best_loss


def insist_same(ours: Any, theirs: Any, first: int = 1) -> None:
    for (rows, weights, best), (its_rows, its_weights, its_best) in zip(ours, theirs, strict=True):
        for step in range(first, 6):
            for name in ("loss", "grad_norm", "lr"):
                assert its_rows[step][name] == pytest.approx(rows[step][name], rel=1e-5), (step, name)
        assert best == pytest.approx(its_best, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(its_weights[name], weight, rtol=0, atol=2e-5, msg=name)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_steps_and_checkpoints_that_any_layout_reads(name: str, tmp_path: Path) -> None:
    """Loss, norm, learning rate, held-out loss and weights of ZeRO of ours; then each goes on from the other's checkpoint."""
    zero = {"1": Zero.optimizer, "2": Zero.gradients, "offload": Zero.gradients}.get(name, Zero.parameters)
    ours, theirs = make(tmp_path, Mesh(dp_shard=2, zero=zero)), make(tmp_path, LAYOUTS[name])
    wanted = pool.run(2, train, ours, tmp_path / "ours", alone=True)
    insist_same(wanted, pool.run(2, train, theirs, tmp_path / "theirs", alone=True))
    moved = tmp_path / "moved"
    pool.run(2, train, make(tmp_path, LAYOUTS[name], trainer__max_steps=3), moved, alone=True)
    insist_same(wanted, pool.run(2, train, ours, moved, alone=True), first=4)
    back = tmp_path / "back"
    pool.run(2, train, make(tmp_path, ours.parallel, trainer__max_steps=3), back, alone=True)
    insist_same(wanted, pool.run(2, train, theirs, back, alone=True), first=4)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
def test_autocast_reaches_the_model(tmp_path: Path) -> None:
    """The engine switches autocast off; ours is within it."""
    ours = pool.run(2, train, make(tmp_path, Mesh(dp_shard=2), precision=Bf16Mixed()), tmp_path / "ours", alone=True)
    theirs = pool.run(2, train, make(tmp_path, LAYOUTS["3"], precision=Bf16Mixed()), tmp_path / "theirs", alone=True)
    plain = pool.run(2, train, make(tmp_path, Mesh(dp_shard=2)), tmp_path / "plain", alone=True)
    (wanted, found, float32) = (rows[1]["loss"] for rows, _, _ in (ours[0], theirs[0], plain[0]))
    assert found == pytest.approx(wanted, rel=2e-7)
    assert float32 != pytest.approx(wanted, rel=1e-6)


def poisoned(job: Job, folder: Path) -> str:
    from llmfactory.objective.causal import CausalObjective

    plain, passes = CausalObjective.__call__, 0

    def call(objective: Any, outputs: Any, batch: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        total, count = plain(objective, outputs, batch)["loss"]
        if passes == 5:  # a gradient that is no number, beneath a finite loss
            total.register_hook(lambda gradient: gradient * torch.nan)
        return {"loss": (total, count)}

    CausalObjective.__call__ = call  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", ["1", "2", "3"])
def test_a_gradient_that_is_no_number_ends_the_run(name: str, tmp_path: Path) -> None:
    job = make(tmp_path, LAYOUTS[name], trainer__save_every=1, trainer__eval_every=None)
    for message in pool.run(2, poisoned, job, tmp_path / "run", alone=True):
        assert "step 3: the loss is" in message
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()][-1:] != ["step_00000003"]
