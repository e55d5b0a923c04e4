"""A reward model from files of judgements to figures: it learns what is better, and is evaluated on what it learns from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from toy_job import Memory, Notes

from llmfactory.config.compose import compose_job
from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import Fitted, fit
from llmfactory.run.plain_file import write_yaml
from llmfactory.run.train import figures_of
from llmfactory.stage.rows import read_data

SMALL = [
    *("model=llama_tiny", "model.vocab_size=300", "model.dim=32", "model.n_layers=2", "model/attention=gqa"),
    *("model.attention.n_heads=2", "model.ffn.hidden=48", "model.max_positions=128", "data/tokenizer=bytes", "data.workers=1"),
    *("optim.lr=1e-2", "optim/schedule=constant", "optim.schedule.warmup_steps=5", "trainer.batch_size=32", "tracking=none"),
    *("trainer.log_every=10", "trainer.save_every=null", "trainer.keep_best=false", "trainer.device=cpu"),
]
ROWS = ["data.seq_len=128", "data/pack=grouped", "data.pack.multiple=16", "data.held_out=0.2"]
FEW = ["data.form.max_tokens=32"]


def answer(make: random.Random, good: int) -> str:
    """A word with so many a's among other letters."""
    letters = ["a"] * good + [make.choice("bcdefgh") for _ in range(6 - good)]
    make.shuffle(letters)
    return "".join(letters)


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.source.files=[{path}]"


def pairs(count: int = 300) -> list[dict[str, Any]]:
    """More a's are better."""
    make = random.Random(1)
    found = []
    for _ in range(count):
        worse, better = sorted(make.sample(range(6), 2))
        found.append({"prompt": make.choice("xyz"), "chosen": answer(make, better), "rejected": answer(make, worse)})
    return found


def rankings() -> list[dict[str, Any]]:
    make = random.Random(2)
    return [
        {"prompt": "x", "responses": [answer(make, good) for good in goods], "scores": goods}
        for goods in (make.choices(range(6), k=make.choice([2, 3])) for _ in range(200))
    ]


def scored() -> list[dict[str, Any]]:
    make = random.Random(3)
    return [{"prompt": "x", "response": answer(make, good), "score": good} for good in make.choices(range(6), k=300)]


def solutions() -> list[dict[str, Any]]:
    """Steps with an a are right."""
    make = random.Random(4)
    labels = [[make.random() < 0.5 for _ in range(make.choice([1, 2, 3]))] for _ in range(200)]
    return [{"question": "x", "steps": [answer(make, 3 * right) for right in some], "labels": some} for some in labels]


def job_of(folder: Path, rows: list[dict[str, Any]], *line: str) -> Job:
    cache = f"data.cache={folder}/cache"
    return compose_job(["stage=reward", *line, written(folder, rows), *SMALL, *ROWS, *FEW, cache, f"output_dir={folder}"]).job


def trained(job: Job, folder: Path) -> tuple[dict[str, Any], Memory, Fitted]:
    """The figures at the end, what was logged, and the model."""
    tracker = Memory()
    data = read_data(job, None, job.stage.objective.specials())  # type: ignore[attr-defined]
    fitted = fit(job, data, folder / "run", tracker, Notes())
    write_yaml(folder / "run" / "config.yaml", to_plain(job))
    return figures_of(job, fitted, data, World(fitted_device())), tracker, fitted


def fitted_device() -> Any:
    import torch

    return torch.device("cpu")


def test_it_learns_which_answer_is_better(tmp_path: Path) -> None:
    job = job_of(tmp_path, pairs(), "data=preference", "model/head=reward", "trainer.max_steps=60", "trainer.eval_every=30")
    figures, tracker, _ = trained(job, tmp_path)
    assert figures["held_out_accuracy"] >= 0.95
    assert figures["held_out_loss"] < 0.35 < 0.6 < tracker.rows[1]["loss"]
    assert figures["held_out_margin"] > 1
    last = tracker.rows[60]
    assert last["accuracy"] > tracker.rows[1]["accuracy"]
    assert {"loss", "accuracy", "margin", "reward", "held_out_loss", "held_out_accuracy", "held_out_margin"} <= set(last)
    assert last["held_out_accuracy"] == pytest.approx(figures["held_out_accuracy"], abs=0.02)
    measured = compose_job(["stage=evaluate", f"init={tmp_path}/run"]).job
    again = measured.stage.build().run(measured, None)
    assert again["held_out_accuracy"] == pytest.approx(figures["held_out_accuracy"], abs=1e-9)
    assert again["held_out_loss"] == pytest.approx(figures["held_out_loss"], rel=1e-5)
    for other in (["data=text"], ["data=reward"]):
        line = ["stage=evaluate", f"init={tmp_path}/run", *other, written(tmp_path, scored()), *ROWS]
        refused = compose_job([*line, *(FEW if other == ["data=reward"] else ())]).job
        with pytest.raises(
            UserError, match=r"bradley_terry, which is measured on answers that are compared in pairs .data=preference"
        ):
            refused.stage.build().run(refused, None)


@pytest.mark.parametrize(
    ("rows", "line", "figure", "least"),
    [
        (
            rankings,
            ["data=ranking", "stage/objective=ranking", "model/head=reward", "data.form.most=3"],
            "held_out_accuracy",
            0.9,
        ),
        (
            scored,
            ["data=reward", "stage/objective=regression", "model/head=reward", "stage.objective.offset=2.5"],
            "held_out_error",
            -0.6,
        ),
        (solutions, ["data=reward", "stage/objective=process", "model/head=value"], "held_out_accuracy", 0.95),
    ],
    ids=["ranking", "regression", "process"],
)
def test_it_learns_what_is_judged(tmp_path: Path, rows: Any, line: list[str], figure: str, least: float) -> None:
    """Accuracies above, errors below (negative) a bound."""
    job = job_of(tmp_path, rows(), *line, "trainer.max_steps=60", "trainer.eval_every=null")
    figures, tracker, _ = trained(job, tmp_path)
    value = figures[figure]
    assert value >= least if least > 0 else value <= -least, figures
    assert tracker.rows[60]["loss"] < 0.5 * tracker.rows[1]["loss"]


def test_records_without_what_is_learned_are_refused(tmp_path: Path) -> None:
    line = ["data=reward", "stage/objective=process", "model/head=value"]
    job = job_of(tmp_path, scored(), *line, "trainer.max_steps=2", "trainer.eval_every=null")
    with pytest.raises(
        UserError, match=r"none of 2.. records .train. has what the objective learns from.*stage/objective=regression"
    ):
        trained(job, tmp_path)
