"""The preflight finds a layout that computes something else, lets a right one through, and says which is which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pool
import pytest
from toy_job import Notes, prepared, toy_job

from llmfactory.config.probe import probe
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.launch.spec import Local
from llmfactory.parallel import collectives
from llmfactory.parallel.mesh import open_world
from llmfactory.parallel.spec import Mesh
from llmfactory.run.preflight import preflight

pytestmark = pytest.mark.dist
LAYOUTS = {"ddp": Mesh(dp_replicate=None), "tp": Mesh(tp=2), "cp": Mesh(cp=2), "zero3": Mesh(dp_shard=None)}


def make(folder: Path, layout: Mesh, **changes: Any) -> Job:
    return toy_job(folder, parallel=layout, launch=Local(processes=2), model__dropout=0.1, trainer__preflight=True, **changes)


def fly(job: Job, folder: Path) -> list[str]:
    """What the preflight says: its notes, or its error."""
    display = Notes()
    data = prepared(job)
    with open_world(job.parallel.mesh(), "cpu") as world:
        try:
            preflight(job, data, folder, world, display)
        except UserError as error:
            return [str(error)]
    assert not (folder / "preflight").exists()
    return display.notes


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_right_layout_may_train(name: str, tmp_path: Path) -> None:
    for (note,) in pool.run(2, fly, make(tmp_path, LAYOUTS[name]), tmp_path / "run"):
        assert note.startswith("preflight: 2 steps of a small model are those of a single process")


def fly_wrong(job: Job, folder: Path) -> list[str]:
    """As `fly`, but one sum over processes is left out on rank 1."""
    plain = collectives.total_

    def total_(x: Any, group: Any) -> Any:
        kept = x.clone()
        plain(x, group)
        return x.copy_(kept) if os.environ["RANK"] == "1" else x

    with mock.patch.object(collectives, "total_", total_):
        return fly(job, folder)


def test_a_wrong_sum_is_found(tmp_path: Path) -> None:
    """By every process, in the same words."""
    messages = pool.run(2, fly_wrong, make(tmp_path, LAYOUTS["tp"]), tmp_path / "run")
    assert messages[0] == messages[1]
    assert "the preflight failed" in messages[0][0]
    assert "trainer.preflight=false" in messages[0][0]


def test_the_probe_keeps_what_a_layout_deals_out(tmp_path: Path) -> None:
    """Heads that are few at laptop size, but enough for the layout in the whole model; a layer for each stage."""
    job = toy_job(
        tmp_path,
        parallel=Mesh(tp=8, pp=4),
        launch=Local(processes=32),
        model__n_layers=6,
        model__dim=64,
        model__attention__n_heads=16,
        model__attention__n_kv_heads=8,
        model__dropout=0.1,
        trainer__preflight=True,
        trainer__micro_batch_size=1,
    )
    small, problems = probe(job)
    assert not problems
    assert small is not None
    assert small.model.attention.n_heads == 16
    assert small.model.n_layers >= 4
    assert small.model.dim < 65
    assert small.model.dropout == 0.0
    assert small.model.vocab_size == job.model.vocab_size
    assert not small.trainer.preflight
