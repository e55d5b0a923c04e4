"""Optimizer steps within the backward pass: the same run, with memory for fewer gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.optim.schedule.spec import Cosine
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.in_backward import InBackward
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import Fitted, fit

OPTIM = Adamw(lr=1e-2, clip_norm=None, schedule=Cosine(warmup_steps=2, horizon=40))


def job(folder: Path, in_backward: bool, steps: int = 4) -> Job:
    """With dropout and a tied table, whose gradient comes from two places."""
    few = {"trainer__max_steps": steps, "trainer__eval_every": None, "trainer__keep_best": False, "trainer__save_every": 2}
    return toy_job(folder, optim=OPTIM, precision=Fp64(), model__dropout=0.1, trainer__in_backward=in_backward, **few)


def train(job: Job, folder: Path) -> tuple[Fitted, Memory]:
    tracker = Memory()
    return fit(job, prepared(job), folder, tracker, Notes()), tracker


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in fitted.model.named_parameters()}


def test_the_same_run_with_fewer_gradients(tmp_path: Path, monkeypatch) -> None:
    """Weights and losses bit for bit, norms to rounding; resumed halfway; never two gradients at once."""
    plain, curve = train(job(tmp_path, False), tmp_path / "plain")
    most = 0
    step = InBackward._step

    def counting(self, number, parameter):
        nonlocal most
        alive = sum(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])
        most = max(most, alive)
        step(self, number, parameter)

    monkeypatch.setattr(InBackward, "_step", counting)
    train(job(tmp_path, True, steps=2), tmp_path / "early")
    early, its_curve = train(job(tmp_path, True), tmp_path / "early")
    assert most == 1
    expected = weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(early).items())
    assert [row["loss"] for row in its_curve.rows.values()] == [curve.rows[step]["loss"] for step in its_curve.rows]
    for at, row in its_curve.rows.items():
        assert row["grad_norm"] == pytest.approx(curve.rows[at]["grad_norm"], rel=1e-12)


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimizers do, and walks by that count."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data -= group["k"] * parameter.grad


def test_what_a_group_counts_it_counts_once_a_step() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    inside, after = (Counting([{"params": list(one.parameters())}], lr=0.1) for one in (model, other))
    stepping = InBackward(inside)
    for number in range(3):
        for one in (model, other):
            one(torch.full((1, 3), number + 1.0)).square().sum().backward()
        total = torch.stack([p.grad.norm() for p in other.parameters()]).norm()
        torch.testing.assert_close(stepping.finish(), total)
        after.step()
        after.zero_grad()
        assert inside.param_groups[0]["k"] == number + 1
        assert len(inside.param_groups[0]["params"]) == 2
        assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_gradient_that_is_no_number_does_not_reach_its_weight() -> None:
    weight = nn.Parameter(torch.ones(2))
    stepping = InBackward(torch.optim.SGD([weight], lr=0.1))
    (weight * torch.tensor([1.0, float("inf")])).sum().backward()
    assert not stepping.finish().isfinite()
    assert torch.equal(weight.detach(), torch.ones(2))


def test_a_loss_that_is_no_number_ends_the_run_before_any_step(tmp_path: Path, monkeypatch) -> None:
    steps = []
    monkeypatch.setattr(InBackward, "_step", lambda *given: steps.append(given))
    from llmfactory.parallel.strategy import MeshStrategy

    loss = MeshStrategy._loss
    monkeypatch.setattr(MeshStrategy, "_loss", lambda self, sums, share: loss(self, sums, share) * float("nan"))
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        train(job(tmp_path, True), tmp_path / "run")
    assert not steps
