"""Every precision under layouts that cut its weights, its sums and its steps: the numbers of a single process, as far as their formats go.

In low precision another order of sums is another number. What must be equal to the last bit is proven apart: how narrow weights round
their steps, which steps of float16 overflow, and what a resumed run goes on with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config import rules
from llmfactory.config.spec import Job
from llmfactory.launch.spec import Local
from llmfactory.optim.narrow import NarrowWeights
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import Mesh, Offload, Schedule, Zero
from llmfactory.peft.spec import Lora
from llmfactory.precision.spec import Bf16Mixed, Bf16True, Fp8, Fp16Mixed, Fp32, Int8Mixed, PrecisionSpec, Recipe, Rounding
from llmfactory.run.fit import fit

pytestmark = pytest.mark.dist

PRECISIONS: dict[str, tuple[PrecisionSpec, float]] = {
    "fp32": (Fp32(), 1e-4),
    "bf16_mixed": (Bf16Mixed(), 0.01),
    "fp16_mixed": (Fp16Mixed(), 2e-3),
    **{f"bf16_true {one.name}": (Bf16True(keep=one), 0.02) for one in Rounding},
    **{f"fp8 {one.name}": (Fp8(recipe=one, emulate=True), 0.02) for one in Recipe},
    "int8_mixed": (Int8Mixed(), 0.01),
}
"""And how far losses, gradient norms and weights, all together, may be from those of a single process, as shares of them."""
LAYOUTS: dict[str, tuple[int, Mesh]] = {
    "zero3": (2, Mesh(dp_shard=2)),
    "tp": (2, Mesh(tp=2)),
    "pp": (2, Mesh(pp=2)),
    "ddp": (2, Mesh(dp_replicate=2)),
    "zero1": (2, Mesh(dp_shard=2, zero=Zero.optimizer)),
    "tp_sp x zero3": (4, Mesh(tp=2, dp_shard=2, sequence_parallel=True)),
    "zero bubble": (2, Mesh(pp=2, schedule=Schedule.zero_bubble)),
}
DEFAULT = ("zero3", "tp", "pp")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"peft": Lora(rank=2)},
    "recompute": {"parallel__recompute": True},
}

Numbers = tuple[list[float], list[float], dict[str, Tensor]]


def make(folder: Path, precision: PrecisionSpec, layout: Mesh, **changes: Any) -> Job:
    few = {"trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False, "model__vocab_size": 258}
    stages = layout.pp * layout.stages_per_process
    settings = {"trainer__max_steps": 4, "trainer__micro_batch_size": 2, "model__n_layers": max(2, stages)}
    return toy_job(folder, precision=precision, **{"parallel": layout, **few, **settings, **changes})


def train(job: Job, folder: Path) -> Numbers:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = tracker.rows.values()
    weights = {name: whole(p.detach()) for name, p in fitted.model.named_parameters()}
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows], weights


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def train_all(data: Path, folder: Path, layout: Mesh, variant: str) -> dict[str, Numbers]:
    jobs = {name: make(data, one, layout, **VARIANTS[variant]) for name, (one, _) in PRECISIONS.items()}
    return {name: train(job, folder / name) for name, job in jobs.items()}


def insist_near(found: Numbers, right: Numbers, tolerance: float, where: str, noise: tuple[float, float] = (0.0, 0.0)) -> None:
    """`noise`: how far norms of gradients, and weights, may be if that is more."""
    for one, other in zip(found[0], right[0], strict=True):
        assert one == pytest.approx(other, rel=tolerance), where
    for one, other in zip(found[1], right[1], strict=True):
        assert one == pytest.approx(other, rel=max(tolerance, noise[0]), nan_ok=True), where  # no norm of what overflows
    for name, weight in found[2].items():
        assert weight.dtype == right[2][name].dtype, where
    assert distance(found[2], right[2]) <= max(tolerance, noise[1]), where


def distance(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Of weights, all together, as a share of them."""
    missed = sum(float((weight.double() - right[name].double()).square().sum()) for name, weight in found.items())
    length = sum(float(right[name].double().square().sum()) for name in found)  # a stage of a pipeline has some
    assert length > 0
    return (missed / length) ** 0.5


def noise_of(one: Numbers, exact: Numbers) -> tuple[float, float]:
    """Twice what a format makes of norms and weights in a single process: as far as two that each are so far from float32 may be
    from one another."""
    norms = max(abs(norm / other - 1) for norm, other in zip(one[1], exact[1], strict=True))
    return 2 * norms, 2 * distance(one[2], exact[2])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], tuple[Path, dict[str, Numbers]]]:
    """Of a model so deep, the folder of its data and the numbers of a single process, each made once."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def found(depth: int, variant: str) -> tuple[Path, dict[str, Numbers]]:
        changes = {**VARIANTS[variant], "model__n_layers": depth}
        return folder, {
            name: train(make(folder, one, Mesh(), **changes), folder / f"{name} {depth} {variant}")
            for name, (one, _) in PRECISIONS.items()
        }

    return found


@pytest.mark.parametrize("variant", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "recompute"))])
@pytest.mark.parametrize("layout", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
def test_the_numbers_of_one_process(layout: str, variant: str, alone: Any, tmp_path: Path) -> None:
    processes, mesh = LAYOUTS[layout]
    folder, right = alone(max(2, mesh.pp * mesh.stages_per_process), variant)
    for found in pool.run(processes, train_all, folder, tmp_path, mesh, variant):
        for name, (_, tolerance) in PRECISIONS.items():
            # Beside a frozen base whose products are rounded, the gradients of adapters that have just begun are small. That the
            # steps are the same ones is shown in float64 (test_optimizers.py).
            noise = noise_of(right[name], right["fp32"]) if variant == "lora" else (0.0, 0.0)
            insist_near(found[name], right[name], tolerance, f"{name} under {layout}", noise)


# ---- steps of narrow weights


def steps_of(rounding: Rounding, cuts: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Weights and state after three steps of AdamW, cut along these dimensions over all processes; None: whole."""
    random = torch.Generator().manual_seed(0)
    named: dict[str, nn.Parameter] = {}
    mesh = None if cuts is None else init_device_mesh("cpu", (torch.distributed.get_world_size(),))

    def laid(tensor: Tensor, dim: int) -> Tensor:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, [Shard(dim)])

    shapes = {"a": (7, 6), "b": (5, 4, 3), "c": (9,)}
    dims = dict(zip(shapes, cuts or (0, 0, 0), strict=True))
    for name, shape in shapes.items():
        named[name] = nn.Parameter(laid(torch.randn(shape, generator=random).bfloat16(), dims[name]))
        named[name].grad_dtype = torch.float32
    inner = Adamw(lr=1e-2, schedule=Constant()).build([{"params": list(named.values()), "weight_decay": 0.1}])
    optimizer = NarrowWeights(inner, rounding, {one: name for name, one in named.items()}, seed=3)
    for step in range(3):
        for name, one in named.items():
            one.grad = laid(torch.randn(shapes[name], generator=random), dims[name])
        optimizer.at = step
        optimizer.step()
    found = {name: whole(one.detach()) for name, one in named.items()}
    return found | {f"{name}.{key}": whole(value) for name, one in named.items() for key, value in optimizer.state[one].items()}


def all_steps(cuts: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    return {rounding.name: steps_of(rounding, cuts) for rounding in Rounding}


def test_narrow_weights_round_alike_under_every_cut() -> None:
    """The random bits of an element do not depend on who holds it."""
    right = {rounding.name: steps_of(rounding, None) for rounding in Rounding}
    for cuts in ((0, 0, 0), (1, 2, 0)):
        for found in pool.run(2, all_steps, cuts):
            for rounding, tensors in right.items():
                assert tensors.keys() == found[rounding].keys()
                for name, tensor in tensors.items():
                    if tensor.dtype is torch.bfloat16:
                        assert found[rounding][name].equal(tensor), (rounding, name)
                    else:  # torch's fused AdamW works on the end of a piece with other instructions: a last digit
                        torch.testing.assert_close(found[rounding][name], tensor, rtol=1e-6, atol=1e-12)


# ---- weights and state elsewhere


def everywhere(folder: Path, at: Path, names: list[str]) -> None:
    """On the host and in files, to the last bit what comes out without."""
    for name in names:
        precision = Fp16Mixed(init_scale=2.0**26, growth_interval=2) if name == "fp16_mixed" else PRECISIONS[name][0]
        right, others = None, [Mesh(dp_shard=2), Mesh(dp_shard=2, offload=Offload.cpu)]
        if not isinstance(precision, Bf16True):
            others.append(Mesh(dp_shard=2, offload=Offload.disk, offload_dir=str(at / "files")))
        for mesh in others:
            job = make(folder, precision, mesh, launch=Local(processes=2))
            assert rules.check(job) == []
            found = train(job, at / f"{name} {mesh.offload.name}")
            right = right or found
            assert repr(found[:2]) == repr(right[:2]), (name, mesh.offload)  # an overflow's norm is not a number
            for key, weight in right[2].items():
                assert found[2][key].equal(weight), (name, mesh.offload, key)


@pytest.mark.parametrize(
    "names",
    [["bf16_true stochastic", "fp16_mixed", "int8_mixed"], pytest.param([*PRECISIONS], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_weights_and_state_elsewhere(names: list[str], tmp_path: Path) -> None:
    pool.run(2, everywhere, tmp_path, tmp_path, names)


# ---- overflow


def overflowing(folder: Path, layouts: dict[str, Mesh]) -> dict[str, tuple[list[float], list[float]]]:
    """By layout, what the log says of the scale and of skipped steps. The scale doubles at every step until something overflows, on
    whichever process that is."""
    found = {}
    for name, mesh in layouts.items():
        precision = Fp16Mixed(init_scale=2.0**16, growth_interval=1)
        tracker = Memory()
        job = make(folder, precision, mesh, trainer__max_steps=16)
        fitted = fit(job, prepared(job), folder / f"overflow {name}", tracker, Notes())
        rows = tracker.rows.values()
        found[name] = [row["loss_scale"] for row in rows], [row["skipped_steps"] for row in rows]
        assert fitted.skipped_steps == found[name][1][-1]
        assert all(p.isfinite().all() for p in fitted.model.parameters())
    return found


def test_all_processes_skip_the_same_steps(tmp_path: Path) -> None:
    (scales, skipped) = overflowing(tmp_path, {"one": Mesh()})["one"]
    assert 1 <= skipped[-1] < 16
    for step in range(1, 16):
        assert scales[step] == scales[step - 1] * (0.5 if skipped[step] > skipped[step - 1] else 2)
    layouts = {name: LAYOUTS[name][1] for name in ("zero3", "tp", "pp")}
    first, second = pool.run(2, overflowing, tmp_path, layouts)
    assert first == second
    for _, skipped in first.values():
        assert 1 <= skipped[-1] < 16


# ---- going on


def go_on(job: Job, folder: Path) -> Numbers:
    return train(replace(job, trainer=replace(job.trainer, max_steps=6)), folder)


@pytest.mark.parametrize("name", ["fp16_mixed", "bf16_true stochastic", "bf16_true compensated", "bf16_true master"])
def test_a_run_goes_on_under_another_layout(name: str, tmp_path: Path) -> None:
    """From a single process to two; and in one process to the last bit. The steps of float16 overflow before the checkpoint."""
    precision = Fp16Mixed(init_scale=2.0**26, growth_interval=2) if name == "fp16_mixed" else PRECISIONS[name][0]
    saved = {"trainer__save_every": 3, "trainer__max_steps": 3}
    job = make(tmp_path, precision, Mesh(), **saved)
    unbroken = go_on(make(tmp_path, precision, Mesh(), trainer__save_every=3), tmp_path / "unbroken")
    for folder in ("alone", "moved"):
        train(job, tmp_path / folder)
    here = go_on(job, tmp_path / "alone")
    assert here[0] == unbroken[0][3:]
    for key, weight in unbroken[2].items():
        assert here[2][key].equal(weight)
    moved = replace(job, parallel=Mesh(dp_shard=2))
    for found in pool.run(2, go_on, moved, tmp_path / "moved"):
        insist_near(found, (unbroken[0][3:], found[1], unbroken[2]), PRECISIONS[name][1], name)
