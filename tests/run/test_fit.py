"""Training end to end in one process: resume, stopping, saving, and what must never reach the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_job import Memory, Notes, Sender, filled, prepared, toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.core.errors import UserError
from llmfactory.data.loader import StepLoader
from llmfactory.model.initialize import initialize
from llmfactory.objective.causal import CausalObjective
from llmfactory.objective.spec import Causal
from llmfactory.optim.schedule.spec import Linear
from llmfactory.optim.spec import Sgd
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.precision.spec import Bf16Mixed, Fp16Mixed, Fp32, Fp64
from llmfactory.run.fit import build_stage


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- what a run leaves


def test_a_run(tmp_path: Path) -> None:
    job = toy_job(tmp_path)
    display = Notes()
    fitted, tracker = train(job, tmp_path / "run", display=display)
    assert (fitted.step, fitted.stopped, fitted.best_step, fitted.skipped_steps) == (8, "finished", 8, 0)
    assert fitted.checkpoint == tmp_path / "run" / "checkpoints" / "step_00000008"
    assert not fitted.model.training
    assert fitted.best_loss == tracker.rows[8]["held_out_loss"]
    assert list(tracker.rows) == list(range(1, 9))
    assert tracker.rows[1].keys() == {"loss", "grad_norm", "lr", "tokens_per_second"}
    assert [step for step, row in tracker.rows.items() if "held_out_loss" in row] == [4, 8]
    assert [row["lr"] for row in tracker.rows.values()][:3] == [0.005, 0.01, 0.01]
    assert tracker.rows[8]["loss"] < tracker.rows[1]["loss"] - 1
    assert (display.started, tracker.rewound) == ((8, 0), [0])
    names = {path.name for path in fitted.checkpoint.iterdir()}
    assert {"state.json", "config.yaml", "tokenizer"} <= names
    state = io.read_state(fitted.checkpoint)
    assert (state["step"], state["samples"], state["best_step"]) == (8, 64, 8)


def test_two_runs_in_one_process_are_equal(tmp_path: Path) -> None:
    job = toy_job(tmp_path, model__dropout=0.1)
    one, its = train(job, tmp_path / "one")
    torch.rand(7)
    other, others = train(job, tmp_path / "other")
    assert its.curve() == others.curve()
    assert_equal(weights(one), weights(other))
    _, third = train(toy_job(tmp_path, model__dropout=0.1, seed=1), tmp_path / "third")
    assert third.curve() != its.curve()


# ---- resume


@pytest.mark.parametrize(
    "precision", [Fp32(), Fp16Mixed(init_scale=2.0**30, growth_interval=2), Bf16Mixed()], ids=["32", "16", "b16"]
)
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, precision: Any, stop: int) -> None:
    """Also with dropout, and stopped off the beat of evaluation and saving."""
    job = toy_job(tmp_path, model__dropout=0.1, precision=precision, trainer__eval_every=2)
    unbroken, reference = train(job, tmp_path / "unbroken")
    folder = tmp_path / "broken"
    tracker: Memory = Sender(stop)
    first, _ = train(job, folder, tracker)
    assert (first.step, first.stopped) == (stop, "terminated")
    assert io.step_of(first.checkpoint) == stop
    tracker.step = -1
    display = Notes()
    second, _ = train(job, folder, tracker, display)
    assert tracker.rewound == [0, stop]
    assert display.started == (8, stop)
    assert display.notes == [f"going on from {first.checkpoint} (step {stop})"]
    assert tracker.curve() == reference.curve()
    assert (second.best_loss, second.best_step, second.step) == (unbroken.best_loss, unbroken.best_step, 8)
    assert second.skipped_steps == unbroken.skipped_steps
    assert_equal(weights(second), weights(unbroken))


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path: Path) -> None:
    """The schedule's horizon is pinned, so the shorter run is a prefix."""
    unbroken, reference = train(toy_job(tmp_path), tmp_path / "unbroken")
    tracker = Memory()
    train(toy_job(tmp_path, trainer__max_steps=4), tmp_path / "run", tracker)
    second, _ = train(toy_job(tmp_path), tmp_path / "run", tracker)
    assert tracker.curve() == reference.curve()
    assert_equal(weights(second), weights(unbroken))


def test_nothing_left_to_do(tmp_path: Path) -> None:
    job = toy_job(tmp_path)
    first, tracker = train(job, tmp_path / "run")
    rows, display = tracker.curve(), Notes()
    second, _ = train(job, tmp_path / "run", tracker, display)
    assert "trainer.max_steps=8 is reached already: nothing to train" in display.notes
    assert tracker.curve() == rows
    assert (second.step, second.stopped, second.best_loss) == (8, "finished", first.best_loss)
    assert second.checkpoint == first.checkpoint
    assert second.tokens_per_second == pytest.approx(first.tokens_per_second)
    assert_equal(weights(first), weights(second))


def test_another_machine_is_said(tmp_path: Path) -> None:
    train(toy_job(tmp_path, trainer__max_steps=1), tmp_path / "run")
    display = Notes()
    train(toy_job(tmp_path, trainer__max_steps=1, trainer__threads=2), tmp_path / "run", display=display)
    assert any("threads 1 -> 2" in note for note in display.notes)


def test_a_damaged_checkpoint_stops_the_resume(tmp_path: Path) -> None:
    fitted, _ = train(toy_job(tmp_path, trainer__max_steps=4), tmp_path / "run")
    shard = next(fitted.checkpoint.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        train(toy_job(tmp_path), tmp_path / "run")


def test_init_takes_the_weights_and_nothing_else(tmp_path: Path) -> None:
    parent, _ = train(toy_job(tmp_path), tmp_path / "parent")
    for init in (tmp_path / "parent", parent.checkpoint):
        job = toy_job(tmp_path, init=str(init), trainer__max_steps=1, optim__lr=1e-9)
        fitted, tracker = train(job, tmp_path / f"child_{init.name}")
        for name, tensor in weights(parent).items():
            torch.testing.assert_close(weights(fitted)[name], tensor, rtol=0, atol=1e-8)
        assert tracker.rows[1]["lr"] == 5e-10, "step 1 of a new schedule"
        assert io.read_state(fitted.checkpoint)["samples"] == 8


# ---- broken numbers


class Poison:
    """Makes the loss NaN in one step, and counts the passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.passes = 0
        plain = CausalObjective.__call__

        def call(objective: CausalObjective, outputs: Any, batch: Any) -> Any:
            terms = plain(objective, outputs, batch)
            self.passes += torch.is_grad_enabled()
            if self.passes == step and torch.is_grad_enabled():
                terms["loss"] = (terms["loss"][0] * torch.nan, terms["loss"][1])
            return terms

        monkeypatch.setattr(CausalObjective, "__call__", call)


@pytest.mark.parametrize("precision", [Fp32(), Fp16Mixed()], ids=["32", "16"])
def test_nan_never_reaches_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    job = toy_job(tmp_path, trainer__save_every=1, trainer__eval_every=None, precision=precision)
    rows = job.data.pack.build(prepared(job).train, job.data.seq_len)
    numbers = ", ".join(map(str, StepLoader(rows, batch_size=8, seed=0).sample_ids(2)))
    Poison(monkeypatch, 3)
    with pytest.raises(UserError, match=rf"step 3: the loss is nan .* rows {numbers}\."):
        train(job, tmp_path / "run")
    assert io.step_of(io.latest(tmp_path / "run" / "checkpoints")) == 2


def test_the_verdict_may_wait_for_the_next_log_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the kernel leaves the weights alone, the run ends when metrics are read, before anything is saved."""
    monkeypatch.setattr(MeshStrategy, "_defers", lambda self, optimizer: True)
    job = toy_job(tmp_path, trainer__log_every=5, trainer__eval_every=None, trainer__save_every=2)
    _, reference = train(job, tmp_path / "reference")
    monkeypatch.undo()
    _, direct = train(job, tmp_path / "direct")
    assert direct.curve() == reference.curve()
    monkeypatch.setattr(MeshStrategy, "_defers", lambda self, optimizer: True)
    Poison(monkeypatch, 3)
    with pytest.raises(UserError, match="step 3: the loss is nan"):
        train(job, tmp_path / "run")
    assert io.step_of(io.latest(tmp_path / "run" / "checkpoints")) == 2
    monkeypatch.setattr(MeshStrategy, "check", lambda self: None)
    Poison(monkeypatch, 3)
    fitted, _ = train(job, tmp_path / "unchecked")
    assert all(tensor.isfinite().all() for tensor in weights(fitted).values())


def test_float16_overflow_is_skipped_and_counted(tmp_path: Path) -> None:
    job = toy_job(tmp_path, precision=Fp16Mixed(init_scale=2.0**40), trainer__max_steps=40, trainer__eval_every=None)
    fitted, tracker = train(job, tmp_path / "run")
    rows = list(tracker.rows.values())
    skipped = [row["skipped_steps"] for row in rows]
    assert 5 < fitted.skipped_steps == skipped[-1] < 35
    assert skipped[:5] == [1, 2, 3, 4, 5]
    assert [row["loss_scale"] for row in rows] == [2.0 ** (40 - count) for count in skipped]
    assert all(
        math.isfinite(row["grad_norm"]) == (count == before)
        for row, count, before in zip(rows, skipped, [0, *skipped], strict=False)
    )
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    _, exact = train(toy_job(tmp_path, trainer__max_steps=1), tmp_path / "plain")
    assert rows[0]["loss"] == pytest.approx(exact.rows[1]["loss"], rel=1e-3)


def test_gradients_that_stay_broken_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 a NaN in the gradients alone looks like overflow, until the scale has become absurdly small."""
    plain = CausalObjective.__call__

    def call(objective: CausalObjective, outputs: Any, batch: Any) -> Any:
        total, count = plain(objective, outputs, batch)["loss"]
        if total.requires_grad:
            total.register_hook(lambda gradient: gradient * torch.nan)
        return {"loss": (total, count)}

    monkeypatch.setattr(CausalObjective, "__call__", call)
    job = toy_job(tmp_path, precision=Fp16Mixed(), trainer__max_steps=100, trainer__eval_every=None, trainer__save_every=None)
    with pytest.raises(UserError, match="the gradient norm nan"):
        train(job, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(tmp_path: Path) -> None:
    job = toy_job(tmp_path, trainer__compile=True)
    compiled, curve = train(job, tmp_path / "compiled")
    _, plain = train(toy_job(tmp_path), tmp_path / "plain")
    for step, row in plain.rows.items():
        assert curve.rows[step]["loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert "embedding.weight" in weights(compiled)


def test_each_step_moves_as_far_as_rate_and_clipping_say(tmp_path: Path) -> None:
    """Plain gradient descent whose gradients are all above the limit: |step n| = lr(n) x clip_norm, and lr(n) is what is logged."""
    optim = Sgd(lr=0.5, schedule=Linear(warmup_steps=2, horizon=6), momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    job = toy_job(tmp_path, optim=optim, trainer__log_every=1)
    initial = job.model.build()
    initialize(initial, job.seed)
    before = torch.cat([weight.detach().flatten().double() for weight in initial.parameters()])
    for steps, factor in ((1, 0.5), (2, 1.0), (3, 1.0), (4, 1 - 0.9 / 4)):
        fitted, tracker = train(replace(job, trainer=replace(job.trainer, max_steps=steps)), tmp_path / f"run {steps}")
        after = torch.cat([weight.detach().flatten().double() for weight in fitted.model.parameters()])
        assert tracker.rows[steps]["grad_norm"] > 0.01
        assert tracker.rows[steps]["lr"] == pytest.approx(0.5 * factor)
        assert (after - before).norm().item() == pytest.approx(0.5 * factor * 0.01, rel=1e-3)
        before = after


def test_a_run_that_had_lost_patience_stays_stopped(tmp_path: Path) -> None:
    """Killed between its last checkpoint and its result, it is started again: no step more."""
    job = toy_job(tmp_path, optim__lr=5.0, trainer__max_steps=40, trainer__eval_every=2, trainer__patience=2)
    first, _ = train(job, tmp_path / "run")
    assert first.stopped == "early"
    again, _ = train(job, tmp_path / "run")
    assert (again.step, again.stopped) == (first.step, "early")
    longer, _ = train(replace(job, trainer=replace(job.trainer, patience=4)), tmp_path / "run")
    assert longer.step > first.step


def test_float64_weights_are_taken_over_whole(tmp_path: Path) -> None:
    job = toy_job(tmp_path, precision=Fp64(), trainer__max_steps=2)
    fitted, _ = train(job, tmp_path / "first")
    stage = filled(build_stage(replace(job, init=str(tmp_path / "first")), isolated=True))
    for ours, theirs in zip(stage.model.parameters(), fitted.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_smoothing_helps_training_and_is_not_measured(tmp_path: Path) -> None:
    plain = toy_job(tmp_path, trainer__max_steps=1, trainer__eval_every=1, optim__lr=1e-12)
    smooth = replace(plain, stage=replace(plain.stage, objective=Causal(label_smoothing=0.4)))
    (_, one), (_, other) = train(plain, tmp_path / "plain"), train(smooth, tmp_path / "smooth")
    assert one.rows[1]["loss"] != pytest.approx(other.rows[1]["loss"], rel=1e-4)
    assert one.rows[1]["held_out_loss"] == pytest.approx(other.rows[1]["held_out_loss"], rel=1e-6)
