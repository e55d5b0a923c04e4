"""Objectives that corrupt rows or train a second model: the same optimizer steps however their rows are shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.pack.spec import Concat
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Discriminator, HeadSpec, Mlm
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import EncoderOnly
from llmfactory.objective.spec import Masked, ObjectiveSpec, Prefix, ReplacedToken
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit
from llmfactory.stage.spec import Pretrain

Steps = tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]


def encoder(head: HeadSpec) -> EncoderOnly:
    return EncoderOnly(
        vocab_size=260,
        dim=16,
        max_positions=64,
        n_layers=2,
        norm=LayerNorm(),
        position=Rope(),
        attention=Gqa(n_heads=4),
        ffn=Mlp(hidden=24, activation=Activation.gelu),
        block=PreNorm(),
        embedding=Token(),
        head=head,
    )


MASKED = {"model": encoder(Mlm(tied=True, activation=Activation.gelu)), "objective": Masked(whole_words=True)}
REPLACED = {
    "model": encoder(Discriminator(activation=Activation.gelu)),
    "objective": ReplacedToken(generator_scale=0.5, weight=5.0),
}
CASES: dict[str, dict[str, Any]] = {"masked": MASKED, "replaced_token": REPLACED, "prefix": {"objective": Prefix()}}


def make(folder: Path, objective: ObjectiveSpec, **changes: Any) -> Job:
    settings = {
        "trainer__max_steps": 4,
        "trainer__eval_every": 4,
        "trainer__eval_rows": None,
        "trainer__save_every": None,
        "trainer__batch_size": 7,
        "optim__clip_norm": 0.5,
        "parallel": Mesh(dp_replicate=None),
        "precision": Fp64(),
        "stage": Pretrain(objective=objective),
        **changes,
    }
    return toy_job(folder, pack=Concat(), **settings)


def train(job: Job, folder: Path) -> Steps:
    """Metrics by step, and the final weights."""
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = {
        step: {k: v for k, v in row.items() if k in ("loss", "grad_norm", "held_out_loss")} for step, row in tracker.rows.items()
    }
    return rows, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def assert_same(ours: Steps, reference: Steps) -> None:
    assert list(reference[0]) == [1, 2, 3, 4]
    assert "held_out_loss" in reference[0][4]
    for step, row in reference[0].items():
        assert ours[0][step] == pytest.approx(row, rel=1e-9)
    assert ours[1].keys() == reference[1].keys()
    for name, weight in reference[1].items():
        assert (ours[1][name] - weight).norm() <= 1e-9 * weight.norm(), name


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Steps]:
    """A folder, an objective with its model, and the reference: one process, the whole batch at once."""
    folder = tmp_path_factory.mktemp("same")
    return folder, CASES[request.param], train(make(folder, **CASES[request.param]), folder / "reference")


@pytest.mark.parametrize("micro_batch_size", [3, 1])
def test_micro_batches(case: tuple[Path, dict[str, Any], Steps], micro_batch_size: int, tmp_path: Path) -> None:
    folder, changes, reference = case
    assert_same(train(make(folder, **changes, trainer__micro_batch_size=micro_batch_size), tmp_path), reference)


@pytest.mark.dist
@pytest.mark.parametrize(("world", "micro_batch_size"), [(2, None), (3, 2)])
def test_data_parallel(
    case: tuple[Path, dict[str, Any], Steps], world: int, micro_batch_size: int | None, tmp_path: Path
) -> None:
    folder, changes, reference = case
    for result in pool.run(world, train, make(folder, **changes, trainer__micro_batch_size=micro_batch_size), tmp_path):
        assert_same(result, reference)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = train(make(tmp_path, **REPLACED), tmp_path / "whole")
    train(make(tmp_path, **REPLACED, trainer__max_steps=2, trainer__eval_every=None), tmp_path / "parts")
    rows, weights = train(make(tmp_path, **REPLACED), tmp_path / "parts")
    assert rows == {step: row for step, row in whole[0].items() if step > 2}
    assert all(torch.equal(weights[name], weight) for name, weight in whole[1].items())
