"""Under layouts, a guard decides as in a single process, and the run ends with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pool
import pytest
import rl_job
import torch
from poisoned import WATCH, poisoned_job, run
from toy_job import weights

from llmfactory.config.spec import Job
from llmfactory.guard.spec import GuardSpec, LowerLr, Rewind, Skip
from llmfactory.parallel.spec import Mesh, Zero
from llmfactory.precision.spec import Fp64
from llmfactory.run import decisions
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.grader import Answer

GUARDS: dict[str, GuardSpec] = {
    "lower_lr": LowerLr(**WATCH, steps=5),
    "rewind": Rewind(**WATCH, back=4, before=1, after=1),
}
LAYOUTS = {
    "ddp": (Mesh(dp_replicate=2), "rewind"),
    "zero3": (Mesh(dp_shard=2, zero=Zero.parameters), "rewind"),
    "tensor": (Mesh(tp=2), "lower_lr"),
    "pipeline": (Mesh(pp=2), "lower_lr"),
}
STEPS = 34


def train(folder: Path, name: str, guard: str, layout: Mesh) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was decided, and the weights."""
    job = poisoned_job(folder, GUARDS[guard], parallel=layout, precision=Fp64(), trainer__max_steps=STEPS)
    model = run(job, folder / name).model
    return decisions.read_lines(folder / name / decisions.FILE), {
        name: p.detach().clone() for name, p in model.named_parameters()
    }


@functools.cache
def single(folder: Path, guard: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    return train(folder, f"single_{guard}", guard, Mesh())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


def insist_close(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-7)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            insist_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            insist_close(one, other)
    else:
        assert found == expected


@pytest.mark.dist
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_process_decides_as_a_single_one(name: str, folder: Path) -> None:
    layout, guard = LAYOUTS[name]
    lines, weights = single(folder, guard)
    assert [line["action"] for line in lines] == [guard]
    for found, own in pool.run(2, train, folder, name, guard, layout):
        insist_close(found, lines)
        for key, weight in weights.items():
            assert (own[key] - weight).norm() <= 1e-9 * weight.norm(), key


# ---- answers that the model writes

RL_LAYOUTS = {"ddp": ["parallel=ddp", "launch.processes=2"], "zero3": ["parallel=zero3"], "tensor": ["parallel=tp_sp"]}
RL_STAGES = {"grpo": ["stage.group=4", "stage.baseline=mean"], "ppo": ["stage.epochs=2"]}
WRONG, RL_STEPS = 5, 8


def learning(folder: Path, stage: str, *overrides: str) -> Job:
    line = ["trainer.batch_size=8", "optim.lr=1e-4", "stage.objective.kl_coef=0.1", "stage.max_kl=null", "precision=fp64"]
    job = rl_job.learning(folder, stage, f"trainer.max_steps={RL_STEPS}", *line, *RL_STAGES[stage], *overrides)
    job.guard = Skip(window=10, least=3, loss_z=None if stage == "grpo" else 8.0)
    return job


def grade(answers: Sequence[Answer], prompt: str, seen: list[str]) -> list[float]:
    """How many digits are right; a million times as much for answers to one prompt."""
    seen += [one.text_prompt for one in answers]
    return [rl_job.reward(one) * (1e6 if one.text_prompt == prompt else 1) for one in answers]


def learn(
    job: Job, folder: Path, prompt: str, seen: list[str] | None = None
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was decided, and the weights. `seen`: takes the prompts in the order in which they are answered."""
    folder.mkdir(exist_ok=True)
    asked: list[str] = [] if seen is None else seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactMatchGrader, "grade", lambda self, answers: grade(answers, prompt, asked))
        fitted, _ = rl_job.train(job, folder)
    return decisions.read_lines(folder / decisions.FILE), weights(fitted)


@functools.cache
def learned_alone(folder: Path, stage: str) -> tuple[str, list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The prompt that is spoiled, the first of an iteration in the middle, and what comes of it."""
    seen: list[str] = []
    assert learn(learning(folder, stage), folder / f"clean_{stage}", "none", seen)[0] == []
    prompt = seen[8 * (WRONG - 1) // (1 if stage == "grpo" else 2)]
    return (prompt, *learn(learning(folder, stage), folder / f"alone_{stage}", prompt))


@pytest.mark.dist
@pytest.mark.parametrize(
    ("stage", "name"),
    [("grpo", "ddp"), ("ppo", "zero3"), *(pytest.param("grpo", name, marks=pytest.mark.slow) for name in ("zero3", "tensor"))],
)
def test_answers_are_judged_alike_by_every_process(stage: str, name: str, folder: Path) -> None:
    prompt, lines, own = learned_alone(folder, stage)
    assert [line["step"] for line in lines] == ([5] if stage == "grpo" else [5, 6])
    assert all(row["begins"] == prompt and row["reward"] > 1e3 for line in lines for row in line["worst"])
    job = learning(folder, stage, "launch=local", *RL_LAYOUTS[name], "trainer.micro_batch_size=2")
    for found, weight_of in pool.run(2, learn, job, folder / f"{stage}_{name}", prompt):
        insist_close(found, lines)
        for key in own.keys() & weight_of.keys():
            assert (weight_of[key] - own[key]).norm() <= 1e-8 * (own[key].norm() + 1e-3), key
