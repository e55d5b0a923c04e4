"""Reward models: the same optimizer steps under every way of sharing out their rows, layers and matrices."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pool
import pytest
from test_objectives import Steps, assert_same
from toy_job import WORDS, Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.form.spec import Preference, Ranking, Reward, SidedSpec
from llmfactory.data.pack.spec import Document, Grouped
from llmfactory.data.source.spec import Files
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.spec import BradleyTerry, ObjectiveSpec, Process, Regression
from llmfactory.objective.spec import Ranking as AllPairs
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit
from llmfactory.stage.spec import Reward as RewardStage

REWARD, VALUE = Scalar(pooling=Pooling.last, bias=True), Scalar()
CASES: dict[str, tuple[SidedSpec, ObjectiveSpec, Scalar]] = {
    "pairs": (Preference(), BradleyTerry(margin_scale=0.5, center=0.1), REWARD),
    "rankings": (Ranking(most=3), AllPairs(), Scalar(pooling=Pooling.last)),  # a bias would have no gradient but rounding
    "scores": (Ranking(most=3), Regression(offset=2.0), REWARD),
    "steps": (Reward(), Process(), VALUE),
}


def written(folder: Path, form: SidedSpec) -> str:
    """Rows of uneven length, some without a margin, without scores, or with fewer answers."""
    path = folder / f"{form.kind}.jsonl"
    said = itertools.cycle(WORDS)
    lines = []
    for number in range(40):
        some = [" ".join(itertools.islice(said, 1 + (number * k) % 3)) + "." * k for k in range(1, 4)]
        row: dict[str, Any] = {"prompt": next(said)}
        if form.kind == "pair":
            row |= {"chosen": some[0], "rejected": some[1], **({"margin": number % 5} if number % 3 else {})}
        elif form.kind == "ranking":
            some = some[: 2 + number % 2]
            row |= {"responses": some, **({"scores": [number % 4, 1, 2][: len(some)]} if number % 5 else {})}
        else:
            row |= {"steps": some, "scores": [number % 2, 1, 0]}
        lines.append(row)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def make(folder: Path, case: str, **changes: Any) -> Job:
    form, objective, head = CASES[case]
    settings = {
        "trainer__max_steps": 4,
        "trainer__eval_every": 4,
        "trainer__eval_rows": None,
        "trainer__save_every": None,
        "trainer__batch_size": 7,
        "optim__clip_norm": 0.5,
        "precision": Fp64(),
        "stage": RewardStage(objective=objective),
        "model__head": head,
        "model__max_positions": 256,
        "data__seq_len": 192,
        "data__form": form,
        "data__source": Files(files=[written(folder, form)], field=None),
        **changes,
    }
    return toy_job(folder, pack=Document(), **settings)


def train(job: Job, folder: Path) -> Steps:
    """Metrics by step, those that are watched among them, and the final weights."""
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = {step: {k: v for k, v in row.items() if k != "tokens_per_second"} for step, row in tracker.rows.items()}
    assert set(job.stage.objective.build().watched) <= set(rows[1])  # type: ignore[attr-defined]
    return rows, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Steps]:
    """A folder, a case, and the reference: one process, the whole batch at once."""
    folder = tmp_path_factory.mktemp("judged")
    return folder, request.param, train(make(folder, request.param), folder / "reference")


def test_micro_batches(case: tuple[Path, str, Steps], tmp_path: Path) -> None:
    folder, name, reference = case
    assert_same(train(make(folder, name, trainer__micro_batch_size=2), tmp_path), reference)


LAYOUTS = {
    "ddp": (2, Mesh(dp_replicate=None)),
    "zero3": (3, Mesh(dp_shard=None)),
    "tensors and rows": (2, Mesh(tp=2, sequence_parallel=True)),
    "pipeline": (2, Mesh(pp=2)),
}


RUNS = {"pairs": list(LAYOUTS), "rankings": ["tensors and rows"], "scores": ["zero3"], "steps": ["pipeline", "tensors and rows"]}
"""All of them share the code that is under a layout's hands."""


@pytest.mark.dist
def test_layouts(case: tuple[Path, str, Steps], tmp_path: Path) -> None:
    folder, name, reference = case
    for layout in RUNS[name]:
        world, mesh = LAYOUTS[layout]
        job = make(folder, name, trainer__micro_batch_size=2, parallel=mesh)
        for result in pool.run(world, train, job, tmp_path / layout):
            assert_same(result, reference)


@pytest.mark.dist
def test_steps_are_judged_wherever_they_stand(tmp_path: Path) -> None:
    """Rows cut along their length: a number at a token needs no other token."""
    reference = train(make(tmp_path, "steps"), tmp_path / "reference")
    for result in pool.run(2, train, make(tmp_path, "steps", parallel=Mesh(cp=2)), tmp_path):
        assert_same(result, reference)


@pytest.mark.dist
def test_steps_in_rows_of_similar_length(tmp_path: Path) -> None:
    """The processes of a layout agree on the width of a batch, and micro-batches keep it."""
    changes = {"data__pack": Grouped(group=7, multiple=4)}
    reference = train(make(tmp_path, "steps", **changes), tmp_path / "reference")
    whole = train(make(tmp_path, "steps", **changes, trainer__micro_batch_size=2), tmp_path / "parts")
    assert_same(whole, reference)
    for name in ("ddp", "tensors and rows"):
        world, mesh = LAYOUTS[name]
        job = make(tmp_path, "steps", **changes, trainer__micro_batch_size=2, parallel=mesh)
        for result in pool.run(world, train, job, tmp_path / name):
            assert_same(result, reference)
