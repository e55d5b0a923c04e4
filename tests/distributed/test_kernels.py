"""Kernels in Triton work on the tensors of their process only: under layouts that cut what they work on, training is the same."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config import rules
from llmfactory.config.spec import Job
from llmfactory.core.kernel import Kernel, interpreted
from llmfactory.launch.spec import Local
from llmfactory.model.ffn.spec import Activation, Moe
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import ContextMethod, Mesh, TensorForm, Zero
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

LAYOUTS = {
    "expert x zero3": Mesh(dp_shard=2, ep=2),
    "ddp": Mesh(dp_replicate=2),
    "zero1": Mesh(dp_shard=2, zero=Zero.optimizer),
    "zero2": Mesh(dp_shard=2, zero=Zero.gradients),
    "zero3, recomputed": Mesh(dp_shard=2, recompute=True),
    "tensor": Mesh(tp=2),
    "tensor and sequence, cut loss": Mesh(tp=2, sequence_parallel=True, loss_parallel=True),
    "tensor in squares": Mesh(tp=4, tensor_form=TensorForm.summa),
    "ring": Mesh(cp=2),
    "ulysses": Mesh(cp=2, context_method=ContextMethod.ulysses),
    "gather": Mesh(cp=2, context_method=ContextMethod.gather),
    "pipeline": Mesh(pp=2),
}
OFTEN = "expert x zero3"
"""The one with all kernels at once, and weights of which a process has a part: in every run of the tests."""


def make(folder: Path, kernel: Kernel, layout: Mesh, experts: bool) -> Job:
    """Norms, rotary positions, a gated unit, attention, the head and the optimizer. Three rows: one process has more than the other."""
    changes = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__save_every": None, "model__vocab_size": 258}
    changes |= {"trainer__keep_best": False}
    changes |= {"trainer__batch_size": 3, "model__n_layers": layout.pp, "data__seq_len": 8, "trainer__kernel": kernel}
    if layout != Mesh():
        world = layout.dp_replicate * layout.dp_shard * layout.cp * layout.tp * layout.pp
        changes |= {"launch": Local(processes=world), "trainer__micro_batch_size": 1 if layout.pp > 1 else 2}
    if experts:
        changes["model__ffn"] = Moe(hidden=9, activation=Activation.silu, gated=True, n_experts=4, k=2, balance=0.1)
    optim = Adamw(lr=1e-2, schedule=Constant(), clip_norm=0.05, kernel=kernel)
    job = toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), **changes)
    assert rules.check(job) == []
    return job


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Weights after the steps by PyTorch's own operations in one process."""
    known: dict[tuple[int, bool], dict[str, torch.Tensor]] = {}
    folder = tmp_path_factory.mktemp("whole")

    def weights(layers: int, experts: bool) -> dict[str, torch.Tensor]:
        if (layers, experts) not in known:
            job = make(folder, Kernel.torch, Mesh(), experts)
            job.model.n_layers = layers
            known[layers, experts] = train(job, folder / f"{layers}{experts}")
        return known[layers, experts]

    return weights


@pytest.mark.dist
@pytest.mark.skipif(not interpreted(), reason="on the CPU")
@pytest.mark.parametrize("name", [name if name == OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
def test_the_steps_are_those_of_one_process(name: str, whole, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    weights = whole(layout.pp, layout.ep > 1)
    job = make(tmp_path, Kernel.triton, layout, layout.ep > 1)
    for found in pool.run(job.launch.world(), train, job, tmp_path / "many"):
        for key, weight in weights.items():
            # The floor is for what has no gradient but rounding.
            assert (found[key] - weight).norm() <= 1e-9 * max(float(weight.norm()), 1e-3), key
