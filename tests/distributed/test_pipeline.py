"""Pipelines take the steps of a single process: every schedule, every kind of model, parameters that stages share.

Three steps of AdamW with weight decay and clipping in float64, documents of uneven length, and the held-out loss after them. A run of
the pool trains several jobs one after the other, since starting processes takes longer than training.
"""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from test_every_graph import CASES, job_of
from toy_job import Memory, Notes

from llmfactory.config.spec import Job
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data

pytestmark = pytest.mark.dist
Result = tuple[list[float], dict[str, torch.Tensor]]

SMALL = ["model.n_layers=4", "model.dim=16", "model.attention.n_heads=2", "model.ffn.hidden=24", "model.vocab_size=300"]
MODELS = {
    **{case: CASES[case] for case in ("shared layers", "encoder-decoder", "denoising", "two streams", "lstm", "mixture")},
    "encoder": [*CASES["encoder"], *SMALL],
    "tied decoder": ["model=gpt2_tiny", *SMALL, "model.dropout=0", "model.attention.dropout=0"],
    "untied decoder": ["model=llama_tiny", *SMALL, "model.attention.n_kv_heads=1", "model/head=lm", "model.head.tied=false"],
}
GPIPE, ONE, LOOP = "gpipe", "one_f_one_b", "interleaved"
ZERO, V = "zero_bubble", "zero_bubble_v"
SINGLE = "parallel.virtual_stages=1"
BATCH = ["trainer.batch_size=6", "trainer.micro_batch_size=1"]


def train(job: Job, folder: Path) -> Result:
    """Losses, norms and the held-out loss, and the final weights."""
    tracker = Memory()
    fitted = fit(job, read_data(job, None, job.stage.objective.specials()), folder, tracker, Notes())
    rows = tracker.rows.values()
    figures = [row[name] for name in ("loss", "grad_norm", "held_out_loss") for row in rows if name in row]
    assert len(figures) == 7
    return figures, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def train_all(jobs: list[Job], folder: Path) -> list[Result]:
    return [train(job, folder / str(number)) for number, job in enumerate(jobs)]


def prove(world: int, cases: list[tuple[str, list[str]]], folder: Path) -> None:
    """(model, overrides of the layout), each of which must be like one process."""
    common = ["trainer.eval_every=3", "optim.weight_decay=0.1", "parallel.dp_replicate=1", *BATCH]
    layout = ["launch=local", f"launch.processes={world}"]
    jobs = [job_of(MODELS[model], folder, *common, *layout, *changes) for model, changes in cases]
    same: list[Result] = []
    wanted: dict[tuple[str, ...], Result] = {}
    for model, changes in cases:
        plain = [one for one in changes if not one.startswith("parallel.")]
        key = model, *plain
        if key not in wanted:
            wanted[key] = train(job_of(MODELS[model], folder, *common, *plain), folder / "alone" / str(len(wanted)))
        same.append(wanted[key])
    for results in pool.run(world, train_all, jobs, folder / "pipeline"):
        for case, (figures, weights), (want_figures, want_weights) in zip(cases, results, same, strict=True):
            assert figures == pytest.approx(want_figures, rel=1e-9), case
            assert weights.keys() == want_weights.keys()
            for name, weight in want_weights.items():
                # A bias of the keys has no gradient but rounding, so it stays at zero but for rounding.
                assert (weights[name] - weight).norm() <= 1e-9 * weight.norm() + 1e-12, (case, name)


def on(schedule: str, pp: int = 2, *more: str) -> list[str]:
    return [f"parallel.pp={pp}", f"parallel.schedule={schedule}", *more]


def test_decoders_under_every_schedule(tmp_path: Path) -> None:
    """A tied embedding stands on the first and the last stage."""
    cases = [("tied decoder", on(schedule)) for schedule in (GPIPE, ONE, LOOP, ZERO, V)]
    prove(2, [*cases, ("untied decoder", on(ZERO, 2, SINGLE)), ("untied decoder", on(ONE))], tmp_path)


def test_other_graphs(tmp_path: Path) -> None:
    """Encoder and decoder cut into four stages; a bias, and blocks, that all stages share; losses of experts on every stage;
    micro-batches of 2, 2 and 1 rows."""
    cases = [
        ("encoder", on(LOOP)),
        ("encoder-decoder", on(V)),
        ("denoising", on(GPIPE, 2, "trainer.batch_size=5", "trainer.micro_batch_size=2")),
        ("two streams", on(ZERO, 2, SINGLE)),
        ("shared layers", on(ZERO, 2, SINGLE)),
        ("lstm", on(ONE)),
        ("mixture", on(ZERO, 2, SINGLE)),
    ]
    prove(2, cases, tmp_path)


def test_four_processes(tmp_path: Path) -> None:
    """Some parameters are shared by three of four stages, and some stages have no other. Five rows for two data-parallel processes are 3 and 2."""
    rows = ["trainer.batch_size=5", "parallel.zero=optimizer"]
    cases = [
        ("encoder-decoder", on(ONE, 4)),
        ("shared layers", on(GPIPE, 4, "model.n_layers=4")),
        ("tied decoder", on(ZERO, 4, SINGLE, "trainer.batch_size=8")),
        ("mixture", on(V, 2, "parallel.dp_shard=2", "model.n_layers=4", *rows)),
        ("two streams", on(ONE, 2, "parallel.dp_replicate=2", "parallel.recompute=true", *rows[:1])),
    ]
    prove(4, cases, tmp_path)
