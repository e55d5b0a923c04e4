"""A guard beside stages of post-training: a step that went wrong does not reach the weights, whatever its answers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from preferred import preference_job
from rl_job import learning
from toy_job import Memory, Notes, prepared

from llmfactory.config.spec import Job
from llmfactory.guard.spec import GuardSpec, Rewind, Skip
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.objective import Objective
from llmfactory.objective.preference_spec import Dpo
from llmfactory.objective.reward_spec import BradleyTerry
from llmfactory.run import decisions
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data
from llmfactory.stage.spec import Reward

WATCH: dict[str, Any] = {"window": 10, "least": 4, "loss_z": 30.0, "norm_z": None}
BROKEN: dict[str, Any] = {"window": 10, "least": 4, "loss_z": None, "norm_z": None}
"""Answers that are all judged alike have no gradient, to which nothing could be compared: what is no number is found all the same."""
GUARDS = {"skip": Skip(**WATCH), "rewind": Rewind(**WATCH, back=2, before=1, after=1)}
QUIET: dict[str, Any] = {
    "trainer__eval_every": None,
    "trainer__save_every": 2,
    "trainer__keep_last": 3,
    "trainer__keep_best": False,
}
STEPS, WRONG = 8, 6


def made(folder: Path, stage: str, guard: GuardSpec | None) -> Job:
    asked = {} if guard is None else {"guard": guard}
    if stage in ("ppo", "grpo"):
        group = ["stage.group=4"] if stage == "grpo" else []
        line = ["trainer.batch_size=8", "optim.lr=1e-4", "stage.objective.kl_coef=0.1", "stage.objective.temperature=1.0"]
        line += ["trainer.save_every=2", "trainer.keep_last=3"]
        job = learning(folder, stage, f"trainer.max_steps={STEPS}", *line, *group)
        if guard is not None:
            job.guard = Skip(**BROKEN)
        return job
    settings = {**QUIET, **asked, "trainer__max_steps": STEPS, "optim__lr": 1e-4}
    if stage == "preference":
        return preference_job(folder, Dpo(beta=0.5), **settings)
    head = {"model__head": Scalar(pooling=Pooling.last), "stage": Reward(objective=BradleyTerry())}
    return preference_job(folder, BradleyTerry(), **settings, **head)  # type: ignore[arg-type]


def spoiled(job: Job, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The loss of one step, as a batch makes it that nobody should learn from: once, whatever is read again."""
    cls: type[Objective] = type(job.stage.trained(job))  # type: ignore[attr-defined]
    plain, seen = cls.__call__, 0

    def call(self: Any, outputs: Any, batch: Any) -> Any:
        nonlocal seen
        found = plain(self, outputs, batch)
        seen += torch.is_grad_enabled()
        if seen == WRONG and torch.is_grad_enabled():
            return {name: (total * factor, count) for name, (total, count) in found.items()}
        return found

    monkeypatch.setattr(cls, "__call__", call)


CASES = [
    ("reward", "skip", float("nan")),
    ("grpo", "skip", float("nan")),
    pytest.param("preference", "skip", 1e6, marks=pytest.mark.slow),
    pytest.param("ppo", "skip", float("nan"), marks=pytest.mark.slow),
    pytest.param("reward", "rewind", float("nan"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stage", "guard", "factor"), CASES)
def test_what_went_wrong_reaches_no_weight(
    stage: str, guard: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = made(tmp_path, stage, GUARDS[guard])
    spoiled(job, monkeypatch, factor)
    data = read_data(job, None, job.stage.objective.specials()) if stage in ("ppo", "grpo") else prepared(job)  # type: ignore[attr-defined]
    tracker = Memory()
    folder = tmp_path / "run"
    folder.mkdir()
    fitted = fit(job, data, folder, tracker, Notes())
    (line,) = decisions.read_lines(folder / decisions.FILE)
    assert (line["step"], line["action"], line["withheld"]) == (WRONG, guard, True)
    assert line["what"] == ("spike" if factor == 1e6 else "not_finite")
    assert ("rows" in line) == (stage in ("preference", "reward")), "answers that the model wrote are in no row"
    assert ("left_out" in line) == (guard == "rewind")
    assert fitted.step == STEPS
    assert all(p.isfinite().all() for p in fitted.model.parameters())
    assert all(row["loss"] < 100 for step, row in tracker.rows.items() if step != WRONG and "loss" in row)
