"""Compiled blocks make the same steps under the layouts that may have them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.ffn.spec import Activation, Moe
from llmfactory.parallel.spec import ContextMethod, Mesh
from llmfactory.peft.spec import Dora, Lora
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

EXPERTS = Moe(hidden=16, n_experts=4, k=2, activation=Activation.silu, gated=True)
LAYOUTS: dict[str, tuple[Mesh, dict[str, Any]]] = {
    "rows": (Mesh(tp=2, sequence_parallel=True, loss_parallel=True), {}),
    "zero3": (Mesh(dp_shard=2), {}),
    "tensor": (Mesh(tp=2), {}),
    "pipeline": (Mesh(pp=2), {}),
    "ring": (Mesh(cp=2), {}),
    "ulysses": (Mesh(cp=2, context_method=ContextMethod.ulysses), {}),
    "gather": (Mesh(cp=2, context_method=ContextMethod.gather), {}),
    "experts": (Mesh(dp_shard=2, ep=2), {"model__ffn": EXPERTS}),
    "copies, adapters": (Mesh(dp_replicate=2), {"peft": Lora(rank=2)}),
    "zero3, adapters": (Mesh(dp_shard=2), {"peft": Lora(rank=2)}),
    "zero3, adapters of rows": (Mesh(dp_shard=2), {"peft": Dora(rank=2)}),
    "tensor, adapters": (Mesh(tp=2), {"peft": Lora(rank=2)}),
    "rows, adapters": (Mesh(tp=2, sequence_parallel=True, loss_parallel=True), {"peft": Lora(rank=2)}),
}


def make(folder: Path, layout: Mesh, **changes: Any) -> Job:
    steps = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__save_every": None, "trainer__micro_batch_size": 2}
    model = {"model__vocab_size": 258, "model__attention": Gqa(n_heads=4, n_kv_heads=2)}
    return toy_job(folder, parallel=layout, precision=Fp64(), **steps, **model, **changes)


def train(job: Job, folder: Path, backend: str | None = None) -> dict[str, torch.Tensor]:
    if backend is not None:
        warnings.simplefilter("ignore")  # of the compiler's own
        plain = torch.nn.Module.compile
        torch.nn.Module.compile = lambda self: plain(self, backend=backend)  # type: ignore[method-assign]
    try:
        fitted = fit(job, prepared(job), folder, Memory(), Notes())
    finally:
        if backend is not None:
            torch.nn.Module.compile = plain  # type: ignore[method-assign]
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "something was compiled"
            torch.compiler.reset()
            torch._dynamo.utils.counters.clear()
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def insist_equal(name: str, backend: str, folder: Path) -> None:
    layout, changes = LAYOUTS[name]
    weights = train(make(folder, Mesh(), **changes), folder / "one")
    job = make(folder, layout, trainer__compile=True, **changes)
    for found in pool.run(2, train, job, folder / name, backend, alone=True):
        for key, weight in weights.items():
            assert (found[key] - weight).norm() <= 1e-9 * weight.norm(), (name, key)


@pytest.mark.dist
def test_matrices_and_rows_that_are_cut(tmp_path: Path) -> None:
    """As far as the compiler takes blocks apart and puts them together again, without making code of them."""
    insist_equal("rows", "aot_eager", tmp_path)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_graphs(name: str, tmp_path: Path) -> None:
    insist_equal(name, "aot_eager", tmp_path)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_machine_code(name: str, tmp_path: Path) -> None:
    insist_equal(name, "inductor", tmp_path)
