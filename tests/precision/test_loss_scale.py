"""Dynamic loss scaling against torch's GradScaler."""

from __future__ import annotations

import pytest
import torch

from llmfactory.precision.loss_scale import LossScale
from llmfactory.precision.spec import Fp16Mixed


def test_follows_torchs_scaler() -> None:
    """The same scale after every step of a row of overflows and good steps."""
    ours = LossScale(Fp16Mixed(init_scale=1024.0, growth_interval=3, growth=3.0, backoff=0.25))
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3, growth_factor=3.0, backoff_factor=0.25)
    parameter = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    overflows = [False, False, True, False, False, False, False, True, True, False, False, False, False, False, False]
    for overflow in overflows:
        theirs.scale(parameter.sum() * (torch.inf if overflow else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(overflow))
        assert ours.value.item() == theirs.get_scale()
    assert ours.skipped == sum(overflows)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_backs_off_after_some_overflows(interval: int) -> None:
    """Against the rule as it is said: the n-th overflow since the scale last changed lowers it, good steps in between or not."""
    scale = LossScale(Fp16Mixed(init_scale=1024.0, growth_interval=4, backoff_interval=interval))
    value, good, bad, skipped = 1024.0, 0, 0, 0
    random = torch.Generator().manual_seed(interval)
    for overflow in (torch.rand(200, generator=random) < 0.3).tolist():
        scale.update(torch.tensor(overflow))
        good, bad, skipped = (0, bad + 1, skipped + 1) if overflow else (good + 1, bad, skipped)
        if bad == interval:
            value, bad = value / 2, 0
        elif good == 4:
            value, good, bad = value * 2, 0, 0
        assert scale.state() == {"value": value, "good_steps": good, "overflows": bad, "skipped": skipped}


def test_state_goes_on() -> None:
    spec = Fp16Mixed(init_scale=1024.0, growth_interval=3, backoff_interval=2)
    first, second = LossScale(spec), LossScale(Fp16Mixed(init_scale=1.0, growth_interval=3, backoff_interval=2))
    for overflow in (True, False, False):
        first.update(torch.tensor(overflow))
    second.load(first.state())
    for scale in (first, second):
        scale.update(torch.tensor(True))
    assert first.state() == second.state() == {"value": 512.0, "good_steps": 0, "overflows": 0, "skipped": 2}


def test_a_state_without_a_number_of_overflows() -> None:
    """Of a checkpoint from before there was a choice."""
    scale = LossScale(Fp16Mixed())
    scale.load({"value": 8.0, "good_steps": 5, "skipped": 2})
    assert scale.state() == {"value": 8.0, "good_steps": 5, "overflows": 0, "skipped": 2}
