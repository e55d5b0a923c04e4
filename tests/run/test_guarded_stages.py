"""A guard beside stages of post-training: a step that went wrong does not reach the weights, whatever its answers come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from preferred import preference_job
from rl_job import learning, reward
from toy_job import Memory, Notes, Sender, prepared, weights

from llmfactory.config.spec import Job
from llmfactory.guard.spec import Clip, GuardSpec, LowerLr, Report, Rewind, Skip
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.objective import Objective
from llmfactory.objective.preference_spec import Dpo
from llmfactory.objective.reward_spec import BradleyTerry
from llmfactory.run import decisions
from llmfactory.run.fit import Fitted, fit
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.grader import Answer
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
    pytest.param("preference", "rewind", 1e6, marks=pytest.mark.slow),
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
    assert len(line["rows"]) == job.trainer.batch_size
    assert ("prompts" in line) == (stage in ("ppo", "grpo"))
    assert fitted.decisions is not None
    assert fitted.decisions.counted()["samples_not_learned"] == (0 if guard == "rewind" else job.trainer.batch_size)
    assert ("left_out" in line) == (guard == "rewind")
    assert fitted.step == STEPS
    assert all(p.isfinite().all() for p in fitted.model.parameters())
    assert all(row["loss"] < 100 for step, row in tracker.rows.items() if step != WRONG and "loss" in row)


# ---- rewards that nobody meant


def graded(broken: set[str], first: int) -> Any:
    """A grader of how many digits are right, which gives a million times as much to answers to the prompt of answer number `first`."""

    def grade(self: ExactMatchGrader, answers: Sequence[Answer]) -> list[float]:
        return list(map(one, answers))

    def one(answer: Answer) -> float:
        calls.append(1)
        if len(calls) == first + 1 and not broken:
            broken.add(answer.text_prompt)
        return reward(answer) * (1e6 if answer.text_prompt in broken else 1)

    calls: list[int] = []
    return grade


def rewarded(folder: Path, stage: str, guard: GuardSpec) -> Job:
    own = ["stage.group=4", "stage.baseline=mean"] if stage == "grpo" else ["stage.epochs=2"]
    line = ["trainer.batch_size=8", "optim.lr=1e-4", "trainer.save_every=3", "trainer.keep_last=3", "stage.objective.kl_coef=0.1"]
    job = learning(folder, stage, "trainer.max_steps=10", "stage.max_kl=null", *line, *own)
    job.guard = guard
    return job


def ran(job: Job, folder: Path, stop: int | None = None) -> tuple[Fitted, Memory, list[dict[str, Any]]]:
    data, tracker = read_data(job, None, job.stage.objective.specials()), Memory() if stop is None else Sender(stop)  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    return fit(job, data, folder, tracker, Notes()), tracker, decisions.read_lines(folder / decisions.FILE)


NORMS: dict[str, Any] = {"window": 10, "least": 3, "loss_z": None}


@pytest.mark.parametrize(
    ("stage", "guard"),
    [
        ("grpo", Skip(**NORMS)),
        pytest.param("ppo", Skip(**NORMS | {"loss_z": 8.0}), marks=pytest.mark.slow),
        pytest.param("grpo", Clip(**NORMS), marks=pytest.mark.slow),
        pytest.param("ppo", LowerLr(**NORMS, steps=3), marks=pytest.mark.slow),
        pytest.param("grpo", Report(**NORMS), marks=pytest.mark.slow),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_rewards_that_nobody_meant(stage: str, guard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt whose answers had them is named, with its record; what was decided is the same in a run that was stopped meanwhile."""
    broken: set[str] = set()
    monkeypatch.setattr(ExactMatchGrader, "grade", graded(broken, 8 * (4 if stage == "grpo" else 2)))
    job = rewarded(tmp_path, stage, guard)
    fitted, tracker, lines = ran(job, tmp_path / "run")
    (prompt,) = broken
    data = read_data(job, None, job.stage.objective.specials())  # type: ignore[attr-defined]
    assert [line["step"] for line in lines] == ([5] if stage == "grpo" else [5, 6]), "an answer is learned from in each epoch"
    for line in lines:
        named = [row for row in line["worst"] if row["reward"] > 1e3]
        assert line["worst"][: len(named)] == named != []
        assert {row["begins"] for row in named} == {prompt}
        assert {data.tokenizer.decode(data.train.document(number)) for row in named for number in row["documents"]} == {prompt}
        assert all(line["rows"][line["prompts"].index(row["prompt"])] == row["row"] for row in named)
        assert line["withheld"] == isinstance(guard, (Skip, LowerLr))
    assert fitted.decisions is not None
    assert fitted.decisions.counted()["samples_not_learned"] == 8 * sum(line["withheld"] for line in lines)
    ran(job, tmp_path / "parts", stop=5)
    again, second, repeated = ran(job, tmp_path / "parts")
    assert repeated == lines
    for step in (6, 10):
        assert second.rows[step]["loss"] == tracker.rows[step]["loss"]
    for name, weight in weights(fitted).items():
        assert torch.equal(weights(again)[name], weight), name
