"""Dynamic loss scaling against torch's GradScaler."""

from __future__ import annotations

import torch

from llmfactory.precision.loss_scale import LossScale


def test_follows_torchs_scaler() -> None:
    """The same scale after every step of a row of overflows and good steps."""
    ours = LossScale(1024.0, 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
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


def test_state_goes_on() -> None:
    first, second = LossScale(1024.0, 3), LossScale(1.0, 3)
    for scale in (first,):
        scale.update(torch.tensor(True))
        scale.update(torch.tensor(False))
        scale.update(torch.tensor(False))
    second.load(first.state())
    for scale in (first, second):
        scale.update(torch.tensor(False))
    assert first.state() == second.state() == {"value": 1024.0, "good_steps": 0, "skipped": 1}
