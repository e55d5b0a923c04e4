"""Kernels in Triton see the tensors of their process only: under layouts that cut what they work on, training is the same."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.core.kernel import Kernel, interpreted
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

LAYOUTS = {"zero3": Mesh(dp_shard=2), "tensor": Mesh(tp=2, loss_parallel=False)}


def make(folder: Path, kernel: Kernel, layout: Mesh) -> Job:
    """Norms, rotary positions, a gated unit, attention, the head and the optimizer."""
    changes = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__save_every": None, "model__vocab_size": 258}
    changes |= {"trainer__batch_size": 2, "model__n_layers": 1, "data__seq_len": 8, "trainer__kernel": kernel}
    optim = Adamw(lr=1e-2, schedule=Constant(), clip_norm=0.05, kernel=kernel)
    return toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), **changes)


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.mark.dist
@pytest.mark.skipif(not interpreted(), reason="on the CPU")
def test_the_steps_are_those_of_one_process(tmp_path: Path) -> None:
    weights = train(make(tmp_path, Kernel.torch, Mesh()), tmp_path / "one")
    for layout, mesh in LAYOUTS.items():
        for found in pool.run(2, train, make(tmp_path, Kernel.triton, mesh), tmp_path / layout, timeout=250):
            for key, weight in weights.items():
                assert (found[key] - weight).norm() <= 1e-9 * weight.norm(), (layout, key)
