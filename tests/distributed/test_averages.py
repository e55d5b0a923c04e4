"""An average of weights is the same under every layout, and what one layout keeps goes on under another."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.optim.average.spec import AverageSpec, Ema, Lawa, Swa
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import Mesh, Offload
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

AVERAGES: dict[str, AverageSpec] = {
    "ema": Ema(decay=0.7),
    "swa": Swa(start_step=2, every=1),
    "lawa": Lawa(last=2, every=2),
}
LAYOUTS = [
    Mesh(dp_shard=2),
    Mesh(tp=2, sequence_parallel=True),
    Mesh(pp=2),
    Mesh(dp_replicate=2),
    Mesh(dp_shard=2, offload=Offload.cpu),
]
STEPS = 2
"""Under each of them, one after the other."""


def make(folder: Path, average: AverageSpec, layout: Mesh, steps: int) -> Job:
    optim = Adamw(lr=1e-3, schedule=Constant(), average=average, clip_norm=0.05)
    few = {"trainer__max_steps": steps, "trainer__eval_every": 1, "trainer__save_every": None, "trainer__micro_batch_size": 2}
    return toy_job(folder, optim=optim, parallel=layout, precision=Fp64(), trainer__keep_best=False, model__vocab_size=258, **few)


def train(job: Job, folder: Path) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """The held-out losses, and the weights that are handed on."""
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    losses = {step: row["held_out_loss"] for step, row in tracker.rows.items() if "held_out_loss" in row}
    return losses, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.mark.dist
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_goes_on_from_layout_to_layout(name: str, tmp_path: Path) -> None:
    """Under all layouts a running mean, whose mechanism the others share; under two of them those."""
    layouts = LAYOUTS if name == "ema" else LAYOUTS[:2]
    average, last = AVERAGES[name], STEPS * len(layouts)
    expected, weights = train(make(tmp_path, average, Mesh(), last), tmp_path / "one")
    for number, layout in enumerate(layouts, start=1):
        results = pool.run(2, train, make(tmp_path, average, layout, STEPS * number), tmp_path / "moved")
        for losses, _ in results:
            assert list(losses) == [STEPS * number - 1, STEPS * number], layout
            for step, loss in losses.items():
                assert loss == pytest.approx(expected[step], rel=1e-9), (layout, step)
    for _, found in results:
        for key, weight in weights.items():
            assert (found[key] - weight).norm() <= 1e-9 * weight.norm(), key
