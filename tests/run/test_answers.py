"""Runs that learn from rewards: what they learn, that answers are those of the policy as it stands, that they go on where they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_job import column, curve, imitating, learning, mean, train
from toy_job import Memory, Notes, Sender, weights

from llmfactory.checkpoint import io
from llmfactory.core.errors import UserError
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.model.initialize import initialize
from llmfactory.parallel.mesh import World
from llmfactory.run.figures import rewarded
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.grader import Answer, Grade
from llmfactory.stage.iteration import Iteration, Rounds

STEPS = ["stage.answers=16", "trainer.batch_size=8", "stage.epochs=2"]
"""Four steps an iteration."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with a model that gets about one of three tasks right."""
    folder = tmp_path_factory.mktemp("rewards")
    fitted, _ = train(imitating(folder, "trainer.max_steps=35"), folder / "start")
    assert fitted.checkpoint is not None
    (folder / "init").symlink_to(fitted.checkpoint)
    return folder


def begun(start: Path, stage: str, *overrides: str) -> Any:
    return learning(start, stage, f"init={(start / 'init').resolve()}", *overrides)


# ---- learning


LEARNING = {
    "grpo": ["trainer.max_steps=60"],
    "ppo": ["stage.epochs=2", "trainer.max_steps=80"],
}


@pytest.mark.parametrize("stage", list(LEARNING))
def test_it_learns_to_sort(start: Path, stage: str, tmp_path: Path) -> None:
    """From at most 0.5 to at least 0.55 within a few seconds: a wrong sign or mask leads down, or nowhere."""
    fitted, tracker = train(begun(start, stage, "optim.lr=3e-3", "trainer.batch_size=64", *LEARNING[stage]), tmp_path)
    rewards = column(tracker, "reward")
    assert mean(rewards[:3]) < 0.5
    assert mean(rewards[-6:]) > max(0.55, mean(rewards[:6]) + 0.15), rewards
    assert fitted.supply is not None
    figures = fitted.supply.figures()
    assert figures["rollout_share"] + figures["score_share"] + figures["update_share"] == pytest.approx(1)
    assert figures["first_reward"] == rewards[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "dr_grpo", "dapo", "rloo", "ppo"])
def test_it_sorts_in_the_end(start: Path, stage: str, tmp_path: Path) -> None:
    more = {"dapo": ["stage.long_interval=2"], "ppo": ["stage.epochs=2"]}.get(stage, [])
    job = begun(start, stage, "optim.lr=2e-3", "trainer.batch_size=64", "trainer.max_steps=250", *more)
    _, tracker = train(job, tmp_path)
    rewards = column(tracker, "reward")
    assert mean(rewards[:3]) < 0.5
    assert mean(rewards[-20:]) > 0.9


# ---- whose answers they are


def test_each_iteration_is_written_by_the_weights_of_its_step(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning must not ask ahead of a step: answers would be those of a policy that is one step older."""
    seen: list[tuple[int, float]] = []
    plain = Rounds.next

    def watched(self: Rounds, drawn: int, kl_coef: float) -> Iteration:
        found = plain(self, drawn, kl_coef)
        seen.append((drawn, total(self.model)))
        return found

    monkeypatch.setattr(Rounds, "next", watched)
    after: list[float] = []

    class Watching(Memory):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            super().log(step, metrics)
            if "loss" in metrics:
                after.append(total(models[-1]))

    def total(model: Any) -> float:
        return model.head.weight.detach().double().sum().item()

    models: list[Any] = []
    monkeypatch.setattr(Rounds, "check", lambda self: models.append(self.current()))
    train(begun(start, "grpo", "trainer.batch_size=8", "trainer.max_steps=5"), tmp_path, Watching())
    assert [drawn for drawn, _ in seen] == [0, 1, 2, 3, 4]
    assert [checksum for _, checksum in seen[1:]] == after[:4]
    assert len(set(after)) == 5


def test_the_first_step_of_an_iteration_is_on_policy(start: Path, tmp_path: Path) -> None:
    """There the ratio is 1: nothing is clipped, nothing has moved; later steps have moved."""
    job = begun(start, "ppo", "stage.answers=16", "trainer.batch_size=16", "stage.epochs=2", "trainer.max_steps=4")
    _, tracker = train(job, tmp_path)
    moved, clipped = column(tracker, "moved"), column(tracker, "clipped")
    assert moved[0] == pytest.approx(0, abs=1e-9)
    assert moved[2] == pytest.approx(0, abs=1e-9)
    assert clipped[0] == clipped[2] == 0
    assert min(moved[1], moved[3]) > 1e-5
    divergence = column(tracker, "kl_to_reference")
    assert divergence[0] == pytest.approx(0, abs=1e-6), "the reference is the model that the run began with"
    assert abs(divergence[-1]) > 1e-6


# ---- going on


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(start: Path, stop: int, tmp_path: Path) -> None:
    """Within an iteration and between two: metrics, weights and the state of the controller are those of the unbroken run."""
    options = [*STEPS, "stage.kl_target=0.01", "trainer.max_steps=8", "trainer.eval_every=3", "trainer.eval_rows=4"]
    job = begun(start, "ppo", *options)
    fitted, unbroken = train(job, tmp_path / "unbroken")
    _, first = train(job, tmp_path / "parts", Sender(stop))
    assert max(first.rows) == stop
    again, second = train(job, tmp_path / "parts")
    joined = {**{step: row for step, row in curve(first).items() if step <= stop}, **curve(second)}
    assert joined == curve(unbroken)
    for name, weight in weights(fitted).items():
        assert torch.equal(weights(again)[name], weight), name


def test_skipped_groups_are_remembered(start: Path, tmp_path: Path) -> None:
    """How many prompts were put depends on their rewards, and is kept too."""
    options = ["stage.long_interval=2", "trainer.batch_size=16", "stage.group=4", "stage.max_tokens=5"]
    job = begun(start, "dapo", *options, "trainer.max_steps=4")
    fitted, unbroken = train(job, tmp_path / "unbroken")
    train(job, tmp_path / "parts", Sender(2))
    again, second = train(job, tmp_path / "parts")
    assert {step: row for step, row in curve(unbroken).items() if step > 2} == curve(second)
    assert fitted.supply.steps.place.drawn == again.supply.steps.place.drawn > 16  # type: ignore[union-attr]


# ---- what goes wrong


def failing(some: Sequence[int]) -> Any:
    def grade(self: ExactMatchGrader, answers: Sequence[Answer]) -> list[Grade]:
        number = len(calls)
        calls.append(1)
        if number in some:
            raise RuntimeError("broken")
        return [float("nan") if number % 5 == 4 else float(number % 2)]

    calls: list[int] = []
    return grade


def test_answers_without_a_grade_are_counted(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and on held-out prompts; the screen says so while the run goes on, and the table at its end."""
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(Notes, "update", lambda self, step, metrics: shown.append(metrics))
    monkeypatch.setattr(ExactMatchGrader, "grade", failing([1, 2, 7]))
    fitted, tracker = train(begun(start, "grpo", "trainer.batch_size=8", "trainer.max_steps=2"), tmp_path)
    found = fitted.supply.figures()  # type: ignore[union-attr]
    assert column(tracker, "ungraded") == [4.0, 2.0]
    assert found["ungraded"] == 6
    assert found["ungraded_reasons"] == {
        "exact_match: raised RuntimeError": 3,
        "exact_match: gave a number that is not finite": 3,
    }
    assert all(torch.isfinite(weight).all() for weight in weights(fitted).values())
    assert [(one["reward"], one["ungraded"]) for one in shown] == list(
        zip(column(tracker, "reward"), column(tracker, "ungraded"), strict=True)
    )
    monkeypatch.setattr(ExactMatchGrader, "grade", failing(range(99)))
    held_out = fitted.supply.measure(2).figures(None)  # type: ignore[union-attr]
    assert (held_out["held_out_ungraded"], held_out["held_out_reward"]) == (2, 0.0)
    table = {name: count for name, count, _ in rewarded(fitted.supply.figures())}  # type: ignore[union-attr]
    assert (table["no grade by exact_match"], table["held out, no grade by exact_match"]) == ("3", "2")


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_equal_rewards_move_nothing_by_themselves(
    start: Path, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExactMatchGrader, "grade", lambda self, answers: [1.0])
    plain = ["stage.objective.kl_coef=0", "optim.weight_decay=0", "trainer.batch_size=8", "trainer.max_steps=2"]
    _, tracker = train(begun(start, stage, *plain), tmp_path)
    assert all(value == value for row in tracker.rows.values() for value in row.values())
    if stage == "grpo":
        assert column(tracker, "grad_norm") == [0.0, 0.0]
        assert column(tracker, "equal_groups") == [1.0, 1.0]


def test_an_exploding_divergence_ends_the_run(start: Path, tmp_path: Path) -> None:
    options = ["optim.lr=1", "trainer.batch_size=16", "trainer.max_steps=20", "stage.max_kl=0.5"]
    for stage in ("grpo", "ppo"):
        with pytest.raises(UserError, match=r"stage\.max_kl=0\.5.*optim\.lr.*kl_coef"):
            train(begun(start, stage, *options), tmp_path / stage)


def test_an_iteration_ends_early_where_the_policy_has_moved_far(start: Path, tmp_path: Path) -> None:
    """And the next one is made then."""
    job = begun(start, "ppo", *STEPS, "optim.lr=2e-2", "trainer.max_steps=6", "stage.stop_kl=1e-4")
    fitted, tracker = train(job, tmp_path)
    place = fitted.supply.steps.place  # type: ignore[union-attr]
    iterations = column(tracker, "iteration")
    assert place.early >= 2
    assert iterations[-1] > 2
    assert iterations == sorted(iterations)


def test_answers_that_did_not_end_can_be_left_out(start: Path, tmp_path: Path) -> None:
    """Room for one token only: no answer ends, and there is nothing to learn from any."""
    tight = ["stage.max_tokens=1", "stage.unended=none", "optim.weight_decay=0", "trainer.batch_size=8", "trainer.max_steps=1"]
    fitted, tracker = train(begun(start, "grpo", *tight), tmp_path)
    assert column(tracker, "ended") == [0.0]
    assert column(tracker, "grad_norm") == [0.0]
    assert column(tracker, "answer_tokens") == [1.0]
    assert fitted.step == 1


def test_held_out_prompts_are_answered_the_same_way_every_time(start: Path, tmp_path: Path) -> None:
    fitted, tracker = train(begun(start, "grpo", "trainer.batch_size=8", "trainer.max_steps=2", "trainer.eval_every=1"), tmp_path)
    first, second = (fitted.supply.measure(None).figures(None) for _ in range(2))  # type: ignore[union-attr]
    assert first == second
    assert first["held_out_loss"] == -first["held_out_reward"]
    assert len(column(tracker, "held_out_loss")) == 2


def test_a_critic_starts_from_the_policy_or_from_a_reward_model(start: Path, tmp_path: Path) -> None:
    still = ["trainer.batch_size=8", "trainer.max_steps=1", "optim.lr=1e-9", "optim.weight_decay=0"]
    job = begun(start, "ppo", *still)
    judge = dataclasses.replace(job.model, head=Scalar(pooling=Pooling.last)).build()
    initialize(judge, seed=9)
    io.save(tmp_path / "judge" / "checkpoints", 1, judge, None, {}, World(torch.device("cpu")))
    for critic, like in ((None, start / "init"), (tmp_path / "judge", None)):
        options = [] if critic is None else [f"stage.critic={critic}"]
        fitted, _ = train(begun(start, "ppo", *still, *options), tmp_path / str(critic is None))
        found = weights(fitted)
        wanted = found if like is not None else judge.state_dict()
        names = [name for name in judge.state_dict() if critic is not None or not name.startswith("head.")]
        assert len(names) > 5
        for name in names:
            assert torch.allclose(found[f"critic.{name}"], wanted[name], atol=1e-6), name


# ---- adapters


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_reference_of_adapters_is_the_model_without_them(start: Path, stage: str, tmp_path: Path) -> None:
    """No copy is kept, and the run is the one whose reference is a copy."""
    options = ["peft=lora", *STEPS, "stage.objective.kl_coef=0.3", "trainer.max_steps=6"]
    fitted, tracker = train(begun(start, stage, *options), tmp_path / "adapters")
    assert not any(name.startswith("reference.") for name in weights(fitted))
    name = "kl" if stage == "grpo" else "kl_to_reference"
    found = column(tracker, name)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert abs(found[-1]) > 1e-6
    job = begun(start, stage, *options)
    first = train(job, tmp_path / "parts", Sender(3))[1]
    second = train(job, tmp_path / "parts")[1]
    assert {step: row for step, row in curve(tracker).items() if step > max(first.rows)} == curve(second)


# ---- every field does something

CHANGES = {
    "grpo": ["answers=32", "baseline=mean", "epochs=2", "group=4", "long_interval=3", "max_tokens=3", "skip_equal=true"],
    "ppo": [
        *("answers=32", "epochs=2", "gamma=0.8", "lam=0.5", "kl_target=0.001", "clip_reward=0.5", "whiten_rewards=true"),
        *("whiten_advantages=false", "max_tokens=3", "objective.kl_coef=0.5", "objective.temperature=0.7"),
    ],
}


@pytest.fixture(scope="module")
def usual(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights after two iterations, by stage."""
    folder = tmp_path_factory.mktemp("usual")
    return {stage: weights(train(small(start, stage), folder / stage)[0]) for stage in CHANGES}


def small(start: Path, stage: str, *overrides: str) -> Any:
    return begun(start, stage, "trainer.batch_size=16", "stage.epochs=1", "trainer.max_steps=3", *overrides)


@pytest.mark.parametrize(("stage", "change"), [(stage, change) for stage, some in CHANGES.items() for change in some])
def test_the_field_changes_the_run(start: Path, usual: dict[str, Any], stage: str, change: str, tmp_path: Path) -> None:
    changed = weights(train(small(start, stage, f"stage.{change}"), tmp_path)[0])
    assert any(not torch.equal(weight, usual[stage][name]) for name, weight in changed.items())


def test_the_sample_is_an_answer_to_what_was_asked(start: Path, tmp_path: Path) -> None:
    fitted, _ = train(small(start, "grpo", "trainer.sample=true", "stage.sample_prompt='321='"), tmp_path)
    fitted.supply.measure(None)  # type: ignore[union-attr]
    found = fitted.supply.figures()  # type: ignore[union-attr]
    assert found["sample"]["prompt"] == "321="
    assert 0 < len(found["sample"]["text"]) <= 5
    assert [set(one) for one in found["samples"]] == [{"prompt", "text", "reward"}] * 3
