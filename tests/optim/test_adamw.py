"""AdamW against the algorithm as printed (Loshchilov and Hutter 2019, algorithm 2)."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw


def test_equals_the_paper() -> None:
    spec = Adamw(lr=0.1, schedule=Constant(), weight_decay=0.2, betas=[0.8, 0.9], eps=1e-3)
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    decayed, kept = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = spec.build([{"params": [decayed], "weight_decay": 0.2}, {"params": [kept], "weight_decay": 0.0}])
    for parameter, decay in ((decayed, 0.2), (kept, 0.0)):
        w, m, v = start.clone(), torch.zeros(3).double(), torch.zeros(3).double()
        for step in range(1, 5):
            g = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64) * step
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w = w - 0.1 * decay * w - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        parameter.expected = w
    for step in range(1, 5):
        for parameter in (decayed, kept):
            parameter.grad = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64) * step
        optimizer.step()
    for parameter in (decayed, kept):
        torch.testing.assert_close(parameter.detach(), parameter.expected, rtol=1e-12, atol=1e-12)


def test_is_fused() -> None:
    """The kernel takes a flag that leaves the weights alone: a GPU need not be waited for."""
    parameter = torch.ones(2, requires_grad=True)
    optimizer = Adamw(lr=0.1, schedule=Constant()).build([{"params": [parameter]}])
    parameter.grad = torch.full((2,), torch.nan)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), None
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))


def test_bad_betas() -> None:
    with pytest.raises(ConfigError, match="betas"):
        Adamw(lr=0.1, schedule=Constant(), betas=[0.9, 1.0])
