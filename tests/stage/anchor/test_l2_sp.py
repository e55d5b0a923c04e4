"""Holding on to weights: the penalty's gradient and value against autograd, and what is held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from two_tasks import learned, loss, new_job, old_job, train

from llmfactory.core.errors import ConfigError
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.spec import BradleyTerry
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import build_stage
from llmfactory.stage.anchor.ewc import EwcAnchor
from llmfactory.stage.anchor.l2_sp import L2SpAnchor
from llmfactory.stage.anchor.spec import L2Sp, None_
from llmfactory.stage.spec import Reward

ALONE = World(torch.device("cpu"))


def test_the_gradient_and_the_value_are_the_penalty_s() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    weights = {name: torch.rand_like(p) for name, p in model.named_parameters()}

    class Weighed(EwcAnchor):
        def __init__(self, strength: float) -> None:
            super(EwcAnchor, self).__init__(strength)

        def importance(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
            return weights[name]

    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for anchor, ones in ((L2SpAnchor(0.3), True), (Weighed(0.3), False)):
        model.load_state_dict(start)
        anchor.hold(model, {"0.weight", "0.bias", "1.weight"})
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        data = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
        held = {name: p for name, p in model.named_parameters() if name in anchor.held}
        plain = 0.15 * sum(((p - start[n]).square() * (1 if ones else weights[n])).sum() for n, p in held.items())
        want = torch.autograd.grad(data + plain, list(model.parameters()), retain_graph=True)
        data.backward()
        anchor.pull(model, None)
        for p, gradient in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)
        assert anchor.penalty(model, ALONE) == pytest.approx(float(plain.detach()), rel=1e-12)
        model.zero_grad()
        (512 * model(torch.ones(1, 3, dtype=torch.float64)).square().sum()).backward()
        anchor.pull(model, torch.tensor(512.0, dtype=torch.float64))
        for p, gradient in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, 512 * gradient, rtol=1e-12, atol=1e-14)
        model.zero_grad()


def test_what_does_not_learn_is_not_pulled() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    anchor = L2SpAnchor(1.0)
    anchor.hold(model, {"weight", "bias"})
    assert set(anchor.held) == {"bias"}
    anchor.pull(model, None)
    assert model.bias.grad is None, "nor what has no gradient in this step"


def test_a_run_stays_nearer(tmp_path: Path) -> None:
    learned(tmp_path)
    free, logged = train(new_job(tmp_path, None_()), tmp_path / "free")
    assert "anchor_penalty" not in logged.rows[40]
    held, logged = train(new_job(tmp_path, L2Sp(strength=10.0)), tmp_path / "held")
    assert logged.rows[40]["anchor_penalty"] > 0
    old = train(old_job(tmp_path), tmp_path / "old")[0].model.state_dict()

    def apart(model: nn.Module) -> float:
        return sum(float((value - old[name]).square().sum()) for name, value in model.state_dict().items())

    assert apart(held.model) < 0.2 * apart(free.model)
    assert logged.rows[40]["anchor_penalty"] == pytest.approx(5.0 * apart(held.model), rel=1e-4)
    assert loss(held, new_job(tmp_path, None_())) > loss(free, new_job(tmp_path, None_()))


def test_a_new_head_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    train(old_job(tmp_path, trainer__max_steps=1), tmp_path / "old")
    changes = {"model__head": Scalar(pooling=Pooling.last), "init": str(tmp_path / "old")}
    job = old_job(tmp_path, **changes, stage=Reward(objective=BradleyTerry(), anchor=L2Sp()))
    stage = build_stage(job, isolated=True)
    stage.root.to_empty(device="cpu")
    stage.fill(ALONE)
    assert stage.anchor is not None
    names = {name for name, _ in stage.model.named_parameters()}
    assert names - set(stage.anchor.held) == {"head.weight"}


def test_a_strength_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="strength = 0"):
        L2Sp(strength=0.0)
