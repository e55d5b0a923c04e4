"""Mixtures of experts take the same steps however experts, rows and matrices are dealt out: three steps of AdamW with decay and
clipping in float64; loss, gradient norm and every weight to 1e-9.

The balance and z terms weigh enough to show in the first digits, documents have uneven lengths, and Switch's capacity drops
tokens. Experts are FSDP units of their own, over as many copies and shards as dealing them out leaves: one or several.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pool
import pytest
from test_every_graph import Steps, assert_same, job_of
from toy_job import Memory, Notes

from llmfactory.config.spec import Job
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data

MIXTURES = {
    "mixtral": ["model=mixtral_8x7b", "model.ffn.hidden=24", "model.ffn.balance=0.3", "model.ffn.z=0.1"],
    "balanced over the batch": [
        "model=mixtral_8x7b",
        "model.ffn.hidden=24",
        "model.ffn.balance=0.3",
        "model.ffn.balance_over=batch",
    ],
    "noise": ["model=qwen15_moe_a2_7b", "model.ffn.balance=0.3", "model.ffn.jitter=0.1"],
    "qwen_moe": ["model=qwen15_moe_a2_7b", "model.ffn.balance=0.3"],
    "deepseek": ["model=deepseek_v2_lite", "model.n_layers=2", "model.pattern=[dense,base]", "model.ffn.balance=0.3"],
    "switch": ["model=switch_base_8", "stage/objective=span_corruption"],
}
for side in ("encoder", "decoder"):
    settings = {"jitter": 0, "balance": 0.3, "z": 0.1, "capacity": 3}
    MIXTURES["switch"] += [f"model.{side}.others.moe.ffn.{key}={value}" for key, value in settings.items()]
    MIXTURES["switch"] += [f"model.{side}.n_layers=2"]

LAYOUTS = [
    ("mixtral", 2, "dp_shard=2 ep=2"),
    ("mixtral", 2, "dp_replicate=2 ep=2 recompute=true"),
    ("mixtral", 4, "dp_shard=4 ep=2 zero=gradients"),
    ("mixtral", 4, "dp_replicate=2 dp_shard=2 ep=2"),
    ("mixtral", 4, "tp=2 sequence_parallel=true dp_shard=2 ep=2"),
    ("mixtral", 8, "cp=2 tp=2 dp_shard=2 ep=4"),
    ("mixtral", 4, "pp=2 dp_shard=2 ep=2 zero=optimizer"),
    ("balanced over the batch", 2, "cp=2 ep=2"),
    ("noise", 2, "tp=2"),
    ("qwen_moe", 4, "tp=2 dp_shard=2 ep=2"),
    ("qwen_moe", 2, "tp=2 sequence_parallel=true"),
    ("deepseek", 4, "dp_shard=4 ep=4"),
    ("switch", 4, "cp=2 dp_shard=2 ep=2"),
]


def train(job: Job, folder: Path) -> tuple[Steps, float]:
    """Losses, norms and final weights; the loss of held-out rows, of which the last process has fewer, after the last step."""
    tracker = Memory()
    fitted = fit(job, read_data(job, None, job.stage.objective.specials()), folder, tracker, Notes())
    rows = tracker.rows.values()
    weights = {name: p.detach().clone() for name, p in fitted.model.named_parameters()}
    return ([row["loss"] for row in rows], [row["grad_norm"] for row in rows], weights), tracker.rows[3]["held_out_loss"]


def make(mixture: str, folder: Path, *changes: str) -> Job:
    return job_of([*MIXTURES[mixture], "toy=true"], folder, "trainer.eval_every=3", "trainer.eval_rows=5", *changes)


@cache
def reference(mixture: str, folder: Path) -> tuple[Steps, float]:
    return train(make(mixture, folder), folder / mixture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.mark.dist
@pytest.mark.parametrize(("mixture", "world", "layout"), LAYOUTS, ids=[f"{one[0]}-{one[2]}" for one in LAYOUTS])
def test_the_same_steps(mixture: str, world: int, layout: str, folder: Path, tmp_path: Path) -> None:
    degrees = [f"parallel.{degree}" for degree in f"dp_replicate=1 {layout}".split()]
    changes = [*degrees, "launch=local", f"launch.processes={world}"]
    if mixture not in ("balanced over the batch", "noise"):  # which is drawn for all rows at once
        changes.append("trainer.micro_batch_size=2")
    wanted, held_out = reference(mixture, folder)
    for steps, loss in pool.run(world, train, make(mixture, folder, *changes), tmp_path):
        assert_same(steps, wanted)
        assert loss == pytest.approx(held_out, rel=1e-9)
