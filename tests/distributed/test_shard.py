"""Gradients are summed over processes, once a step, and every parameter is a DTensor."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pool
import pytest
import torch
from torch import nn
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.objective.causal import CausalObjective
from llmfactory.parallel.mesh import open_world
from llmfactory.parallel.shard import next_micro_batch, reshard, shard, sharded_modules, units
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.fit import fit


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2, bias=False)) for _ in range(2))
        self.maps = nn.ModuleList([nn.Linear(2, 2, bias=False)])  # as in a connector: no block
        self.last = nn.Linear(2, 1, bias=False)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(self.maps[0](x)).sum()


def gradients() -> tuple[list[torch.Tensor], list[torch.Tensor], bool]:
    from torch.distributed.tensor import DTensor

    rank = int(os.environ["RANK"])
    with open_world(Mesh(dp_replicate=None), "cpu") as world:
        root = Root()
        assert list(units(root)) == list(root.blocks)
        shard(root, world.dense["copies", "shards"])
        assert len(sharded_modules(root)) == 3
        found = []
        for pieces in ([rank + 1.0], [rank + 1.0, 10.0]):
            root.zero_grad()
            for number, value in enumerate(pieces, start=1):
                next_micro_batch(root, number == len(pieces))
                root(torch.full((1, 2), value)).backward()
            reshard(root)
            found.append([parameter.grad.full_tensor() for parameter in root.parameters()])
        return *found, all(isinstance(parameter, DTensor) for parameter in root.parameters())


@pytest.mark.dist
def test_gradients_are_summed() -> None:
    root = Root()
    expected = []
    for inputs in ([1.0, 2.0], [1.0, 10.0, 2.0, 10.0]):
        root.zero_grad()
        for value in inputs:
            root(torch.full((1, 2), value)).backward()
        expected.append([parameter.grad.clone() for parameter in root.parameters()])
    for once, accumulated, distributed in pool.run(2, gradients):
        assert distributed
        assert all(torch.equal(one, other) for one, other in zip(once, expected[0], strict=True))
        assert all(torch.equal(one, other) for one, other in zip(accumulated, expected[1], strict=True))


def test_a_single_process_is_left_alone() -> None:
    root = Root()
    next_micro_batch(root, False)
    reshard(root)
    assert sharded_modules(root) == []


def deferred(job: Job, folder: Path, poison: bool) -> tuple[list[float], str]:
    """As on GPUs: whether a step was broken is decided in the optimizer's kernel, on distributed tensors."""
    plain, passes = CausalObjective.__call__, 0

    def call(objective, outputs, batch):
        nonlocal passes
        passes += torch.is_grad_enabled()
        total, count = plain(objective, outputs, batch)["loss"]
        return {"loss": (total * torch.nan if passes == 3 and poison and os.environ["RANK"] == "1" else total, count)}

    tracker, message = Memory(), ""
    try:
        with mock.patch.object(CausalObjective, "__call__", call), mock.patch.object(MeshStrategy, "_defers", return_value=True):
            fit(job, prepared(job), folder, tracker, Notes())
    except UserError as error:
        message = str(error)
    return [row["loss"] for row in tracker.rows.values()], message


@pytest.mark.dist
def test_a_broken_step_is_left_out_without_waiting(tmp_path: Path) -> None:
    job = toy_job(tmp_path, parallel=Mesh(dp_replicate=None), trainer__eval_every=None, trainer__save_every=None)
    reference = Memory()
    fit(toy_job(tmp_path, trainer__eval_every=None), prepared(job), tmp_path / "one", reference, Notes())
    (losses, message), _ = pool.run(2, deferred, job, tmp_path / "whole", False)
    assert message == ""
    assert losses == pytest.approx([row["loss"] for row in reference.rows.values()], rel=1e-5)
    sparse = toy_job(tmp_path, parallel=Mesh(dp_replicate=None), trainer__eval_every=None, trainer__log_every=5)
    for losses, message in pool.run(2, deferred, sparse, tmp_path / "broken", True):
        assert len(losses) == 1
        assert "step 3: the loss is nan" in message
