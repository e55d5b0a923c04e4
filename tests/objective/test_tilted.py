"""Several tasks tilted towards the worse ones: the loss and its gradient against the paper's equation, however a step is cut up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job, write_text

from llmfactory.config.spec import Job
from llmfactory.core.batch import SURVEY
from llmfactory.core.errors import ConfigError
from llmfactory.data.loader import StepLoader
from llmfactory.data.mix.spec import Fixed
from llmfactory.data.pack.spec import Concat
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Mixture
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.objective.spec import Tilted
from llmfactory.objective.tilted import TASK, TiltedObjective
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Sft

TILT = 2.0


def job_of(folder: Path, **changes: Any) -> Job:
    """Of text, and of text in capitals."""
    plain = write_text(folder)
    loud = folder / "loud.txt"
    loud.write_text(Path(plain).read_text(encoding="utf-8").upper(), encoding="utf-8")
    settings = {"trainer__max_steps": 4, "trainer__batch_size": 7, "trainer__save_every": None, "optim__clip_norm": 0.5}
    job = toy_job(
        folder, pack=Concat(), **{**settings, "precision": Fp64(), "stage": Sft(objective=Tilted(tilt=TILT)), **changes}
    )
    sources = {"plain": Files(files=[plain], split_on="---"), "loud": Files(files=[str(loud)], split_on="---")}
    common = {name: getattr(job.data, name) for name in ("pack", "seq_len", "held_out", "cache", "workers")}
    data = Mixture(sources=sources, mix=Fixed(weights={"plain": 4.0, "loud": 1.0}), tokenizer=Bytes(), **common)
    return replace(job, data=data)


def test_the_gradient_is_that_of_the_tilted_loss(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    objective = job.stage.trained(job)  # type: ignore[attr-defined]
    assert isinstance(objective, TiltedObjective)
    rows = task_rows(job, objective, prepared(job), "train")
    batch = next(iter(StepLoader(rows, batch_size=7, seed=0)))
    assert sorted(set(batch[TASK].tolist())) == [0, 1]
    model = job.model.build().double()
    initialize(model, 0, lambda parameter, value: parameter.copy_(value), declarations(model))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)  # so that the two losses differ
    context = model.context(batch)
    survey = objective.survey(model, batch, context)
    ours, count = objective(objective.outputs(model, batch, context), {**batch, SURVEY: survey.expand(7, -1)})["loss"]
    logits = model.head(model(batch["tokens"], context))
    losses = []
    for number in (0, 1):
        own = batch[TASK] == number
        losses.append(torch.nn.functional.cross_entropy(logits[own].flatten(0, 1), batch["labels"][own].flatten()))
    tilted = torch.logsumexp(TILT * torch.stack(losses), 0) / TILT
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(ours / count, weights), torch.autograd.grad(tilted, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    share, _ = objective.weights(survey)
    torch.testing.assert_close(share, torch.softmax(TILT * torch.stack(losses), 0).detach().double())
    assert abs(float(share[0]) - 0.5) > 0.01


def test_a_source_that_is_not_there_weighs_nothing() -> None:
    objective = Tilted(tilt=1.0).build(("a", "b", "c"))
    assert isinstance(objective, TiltedObjective)
    weights, counts = objective.weights(torch.tensor([6.0, 0.0, 2.0, 3.0, 0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([2.0, -torch.inf, 1.0], dtype=torch.float64).softmax(0))
    assert counts.tolist() == [3, 0, 2]


def numbers(job: Job, folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = {step: {k: v for k, v in row.items() if "second" not in k} for step, row in tracker.rows.items()}
    return rows, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def test_micro_batches(tmp_path: Path) -> None:
    whole = numbers(job_of(tmp_path), tmp_path / "whole")
    cut = numbers(job_of(tmp_path, trainer__micro_batch_size=2), tmp_path / "cut")
    assert {"weight/plain", "weight/loud", "held_out_loss/plain"} <= set(whole[0][4])
    assert whole[0][1]["weight/plain"] + whole[0][1]["weight/loud"] == pytest.approx(1.0)
    for step, row in whole[0].items():
        assert cut[0][step] == pytest.approx(row, rel=1e-9)
    for name, weight in whole[1].items():
        assert (cut[1][name] - weight).norm() <= 1e-9 * weight.norm(), name


LAYOUTS = {
    "zero3": (3, Mesh(dp_shard=None)),
    "tensors": (2, Mesh(tp=2, sequence_parallel=True, loss_parallel=False)),
    "pieces": (2, Mesh(cp=2)),
}


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    world, mesh = LAYOUTS[layout]
    whole = numbers(job_of(tmp_path), tmp_path / "whole")
    for rows, weights in pool.run(
        world, numbers, job_of(tmp_path, parallel=mesh, trainer__micro_batch_size=2), tmp_path / "parts"
    ):
        for step, row in whole[0].items():
            assert rows[step] == pytest.approx(row, rel=1e-9)
        for name, weight in whole[1].items():
            assert (weights[name] - weight).norm() <= 1e-9 * weight.norm(), name


def test_smoothing() -> None:
    objective = Tilted(label_smoothing=0.1).build(("a", "b"))
    assert isinstance(objective, TiltedObjective)
    plain = objective.plain()
    assert (objective.label_smoothing, plain.label_smoothing) == (0.1, 0.0)
    assert (plain.surveys, plain.watched) == (False, ()), "what is measured is the plain loss"
    with pytest.raises(ConfigError, match="tilt = 0"):
        Tilted(tilt=0.0)
