"""Which processes draw the same dropout masks (docs/randomness.md): those that hold the same activations, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Replicate
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.kernel import attention
from llmfactory.model.attention.spec import Gqa
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.weights import local
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

pytestmark = pytest.mark.dist

Masks = list[tuple[tuple[int, ...], str]]
"""Shape of what was dropped from, and which elements stayed, in the order of drawing."""


def make(folder: Path, layout: Mesh, **changes: Any) -> Job:
    steps = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__keep_best": False, "trainer__save_every": None}
    return toy_job(folder, **{"parallel": layout, "model__dropout": 0.2, "precision": Fp64(), **steps, **changes})


def train(job: Job, folder: Path) -> tuple[list[float], Masks, Masks, dict[str, torch.Tensor]]:
    """Losses; masks within blocks, and of attention's probabilities; the final pieces of what tensor parallelism copies."""
    tracker, between, within = Memory(), [], []
    drop, attend = F.dropout, attention.attend

    def dropping(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        y = drop(x, p, training, inplace)
        if training and p:
            between.append((tuple(x.shape), bytes((y != 0).flatten().tolist()).hex()))
        return y

    def attending(*arguments: Any, **options: Any) -> torch.Tensor:
        if options.get("dropout"):
            within.append(((), torch.get_rng_state().numpy().tobytes().hex()))
        return attend(*arguments, **options)

    F.dropout = dropping
    from llmfactory.model.attention import gqa

    gqa.attend = attending
    try:
        fitted = fit(job, prepared(job), folder, tracker, Notes())
    finally:
        F.dropout, gqa.attend = drop, attend
    stage = getattr(fitted.trained, "stage", None)
    copies = {} if stage is None else dict(stage.model.named_parameters())
    kept = {
        name: local(weight).clone()
        for name, weight in copies.items()
        if isinstance(weight, DTensor) and isinstance(weight.placements[-1], Replicate)
    }
    return [row["loss"] for row in tracker.rows.values()], between, within, kept


def test_tensor_parallel_processes_draw_as_one(tmp_path: Path) -> None:
    """Between matrices they hold copies of the same activations: their masks, and so losses, are those of a single process."""
    losses, masks, _, _ = train(make(tmp_path, Mesh()), tmp_path / "single")
    results = pool.run(2, train, make(tmp_path, Mesh(tp=2)), tmp_path / "tp")
    for its_losses, its_masks, _, _ in results:
        assert its_masks == masks
        assert its_losses == pytest.approx(losses, rel=1e-9)
    assert len(set(masks)) == len(masks) > 0, "each is another one"
    assert results[0][3]
    for name, weight in results[0][3].items():
        assert torch.equal(weight, results[1][3][name]), name


def test_heads_of_different_processes_are_dropped_differently(tmp_path: Path) -> None:
    job = make(tmp_path, Mesh(tp=2), model__attention=Gqa(n_heads=4, n_kv_heads=2, dropout=0.3))
    (_, masks, heads, _), (_, its_masks, its_heads, _) = pool.run(2, train, job, tmp_path / "tp")
    assert masks == its_masks, "and afterwards all draw the same again"
    assert len(heads) == len(its_heads) > 0
    assert not set(heads) & set(its_heads)


@pytest.mark.parametrize(
    "layout",
    [Mesh(dp_replicate=2), Mesh(dp_shard=2), Mesh(cp=2), Mesh(tp=2, sequence_parallel=True)],
    ids=["ddp", "zero3", "cp", "tp_sp"],
)
def test_who_holds_other_tokens_draws_other_masks(tmp_path: Path, layout: Mesh) -> None:
    job = make(tmp_path, layout)
    (_, masks, *_), (_, others, *_) = pool.run(2, train, job, tmp_path / "run")
    blocks, its_blocks = ([mask for mask in found if mask[0] == masks[-1][0]] for found in (masks, others))
    assert len(blocks) == len(its_blocks) > 0
    assert not set(blocks) & set(its_blocks)


def test_recomputed_blocks_drop_what_they_dropped(tmp_path: Path) -> None:
    losses, *_ = train(make(tmp_path, Mesh()), tmp_path / "single")
    again, *_ = train(make(tmp_path, Mesh(recompute=True)), tmp_path / "again")
    assert again == losses
