"""The same optimizer steps, however their rows are shared out: whole, in micro-batches, over processes, packed or not.

Five steps of AdamW with weight decay and clipping, in float64: loss, gradient norm and every weight agree to 1e-9. The
documents have uneven lengths, so a mean of means, an averaged gradient or a local denominator would show in the first digits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.pack.spec import Concat, Document, PackSpec
from llmfactory.model.ffn.spec import Activation, Moe, Switch
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Sgd
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

Steps = tuple[list[float], list[float], dict[str, torch.Tensor]]


def make(folder: Path, pack: PackSpec, **changes: Any) -> Job:
    settings = {
        "trainer__max_steps": 5,
        "trainer__eval_every": None,
        "trainer__save_every": None,
        "optim__clip_norm": 0.5,
        "parallel": Mesh(dp_replicate=None),
        **changes,
    }
    return toy_job(folder, pack=pack, **settings)


def train(job: Job, folder: Path) -> Steps:
    """Losses, norms and final weights."""
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = tracker.rows.values()
    weights = {name: p.detach().clone() for name, p in fitted.model.named_parameters()}
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows], weights


def assert_same(ours: Steps, reference: Steps, tolerance: float) -> None:
    assert len(reference[0]) == 5
    assert min(reference[1]) > 0.6, "clipping must be at work"
    for one, other in zip(ours[0] + ours[1], reference[0] + reference[1], strict=True):
        assert one == pytest.approx(other, rel=tolerance)
    for name, weight in reference[2].items():
        assert (ours[2][name] - weight).norm() <= tolerance * weight.norm(), name


@pytest.fixture(scope="module", params=[Concat(), Document()], ids=["packed", "document"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackSpec, Steps]:
    """A folder, a packing, and the reference: one process, the whole batch at once."""
    folder = tmp_path_factory.mktemp("same")
    return folder, request.param, train(make(folder, request.param, precision=Fp64()), folder / "reference")


@pytest.mark.parametrize("micro_batch_size", [4, 2, 3, 1])
def test_micro_batches(case: tuple[Path, PackSpec, Steps], micro_batch_size: int, tmp_path: Path) -> None:
    folder, pack, reference = case
    job = make(folder, pack, precision=Fp64(), trainer__micro_batch_size=micro_batch_size)
    assert_same(train(job, tmp_path), reference, 1e-9)


@pytest.mark.dist
@pytest.mark.parametrize(("world", "micro_batch_size"), [(2, None), (2, 1), (3, None), (3, 2)])
def test_data_parallel(case: tuple[Path, PackSpec, Steps], world: int, micro_batch_size: int | None, tmp_path: Path) -> None:
    """Three processes share eight rows as 2 + 3 + 3."""
    folder, pack, reference = case
    job = make(folder, pack, precision=Fp64(), trainer__micro_batch_size=micro_batch_size)
    for result in pool.run(world, train, job, tmp_path):
        assert_same(result, reference, 1e-9)


@pytest.mark.dist
def test_data_parallel_sgd(tmp_path: Path) -> None:
    """Adam forgives a wrong factor on all gradients; SGD does not."""
    job = make(tmp_path, Document(), precision=Fp64(), optim=Sgd(lr=0.3, schedule=Constant(), clip_norm=0.5))
    reference = train(job, tmp_path / "one")
    for result in pool.run(2, train, job, tmp_path / "two"):
        assert_same(result, reference, 1e-9)


@pytest.mark.dist
def test_float32_losses(tmp_path: Path) -> None:
    reference = train(make(tmp_path, Document()), tmp_path / "one")
    (losses, _, _), _ = pool.run(2, train, make(tmp_path, Document(), trainer__micro_batch_size=2), tmp_path / "two")
    assert losses == pytest.approx(reference[0], rel=1e-5)


EXPERTS = {
    "moe": Moe(hidden=12, n_experts=5, k=2, activation=Activation.silu, gated=True, balance=2.0, z=0.5, shared_hidden=8),
    "switch": Switch(hidden=12, n_experts=4, activation=Activation.relu, gated=False, balance=2.0, z=0.5, capacity_factor=1.0),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_in_micro_batches(kind: str, tmp_path: Path) -> None:
    """Their losses are sums over rows, and no row's capacity depends on another row."""
    settings = {"precision": Fp64(), "model__ffn": EXPERTS[kind]}
    reference = train(make(tmp_path, Document(), **settings), tmp_path / "whole")
    assert_same(train(make(tmp_path, Document(), **settings, trainer__micro_batch_size=3), tmp_path / "cut"), reference, 1e-9)
    plain = train(make(tmp_path, Document(), **{**settings, "model__ffn": replace(EXPERTS[kind], balance=0.0, z=0.0)}), tmp_path)
    assert reference[0][0] > plain[0][0] + 1.0, "their losses must be in"


@pytest.mark.dist
@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_data_parallel(kind: str, tmp_path: Path) -> None:
    settings = {"precision": Fp64(), "model__ffn": EXPERTS[kind]}
    reference = train(make(tmp_path, Document(), **settings), tmp_path / "one")
    for result in pool.run(2, train, make(tmp_path, Document(), **settings, trainer__micro_batch_size=3), tmp_path / "two"):
        assert_same(result, reference, 1e-9)


def test_packed_or_one_document_a_row(tmp_path: Path) -> None:
    """Documents of half a row, two to a packed row: four packed rows a step are eight rows of one document each."""
    text = tmp_path / "text.txt"
    text.write_text("\n---\n".join(f"{number:03d} half a row" for number in range(8)) + "\n", encoding="utf-8")
    common = {"precision": Fp64(), "data__held_out": 0.0}
    packed = train(make(tmp_path, Concat(), trainer__batch_size=4, **common), tmp_path / "packed")
    single = train(make(tmp_path, Document(), trainer__batch_size=8, **common), tmp_path / "single")
    assert_same(packed, single, 1e-9)
