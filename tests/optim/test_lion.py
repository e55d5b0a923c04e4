"""Lion against the algorithm as printed (Chen et al. 2023, algorithm 2)."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Lion


def test_equals_the_paper() -> None:
    spec = Lion(lr=0.1, schedule=Constant(), weight_decay=0.2, betas=[0.6, 0.9])
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    decayed, kept = start.clone().requires_grad_(), start.clone().requires_grad_()
    resting = start.clone().requires_grad_()  # has no gradient
    groups = [{"params": [decayed, resting], "weight_decay": 0.2}, {"params": [kept], "weight_decay": 0.0}]
    optimizer = spec.build(groups)
    gradients = [torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64) * sign for sign in (1, -0.2, -3, 0.5)]
    expected = {}
    for parameter, decay in ((decayed, 0.2), (kept, 0.0)):
        w, m = start.clone(), torch.zeros(3).double()
        for g in gradients:
            w = w - 0.1 * (torch.sign(0.6 * m + 0.4 * g) + decay * w)
            m = 0.9 * m + 0.1 * g
        expected[parameter] = w
    for g in gradients:
        decayed.grad, kept.grad = g.clone(), g.clone()
        optimizer.step()
    for parameter, w in expected.items():
        torch.testing.assert_close(parameter.detach(), w, rtol=1e-12, atol=1e-12)
    assert torch.equal(resting.detach(), start)


def test_clipping_weighs_later_steps() -> None:
    """The first step is the same for gradients of any length; from the second on a clipped one counts less in the mean."""
    ends = []
    for length in (1.0, 100.0):
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = Lion(lr=0.1, schedule=Constant(), betas=[0.5, 0.5]).build([{"params": [parameter], "weight_decay": 0.0}])
        for gradient in (length, -2.0):
            parameter.grad = torch.tensor([gradient])
            optimizer.step()
        ends.append(round(parameter.item(), 6))
    assert ends == [0.0, -0.2]


def test_the_state_is_one_tensor() -> None:
    parameter = torch.ones(2, 3, requires_grad=True)
    optimizer = Lion(lr=0.1, schedule=Constant()).build([{"params": [parameter], "weight_decay": 0.0}])
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    assert [value.shape for value in optimizer.state[parameter].values()] == [parameter.shape]
    assert Lion(lr=0.1, schedule=Constant()).state_copies() == 1


def test_bad_betas() -> None:
    with pytest.raises(ConfigError, match="betas"):
        Lion(lr=0.1, schedule=Constant(), betas=[0.9])
