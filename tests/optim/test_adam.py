"""Adam against the algorithm as printed (Kingma and Ba 2015, algorithm 1), with weight decay in the gradient."""

from __future__ import annotations

import torch

from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adam


def test_equals_the_paper() -> None:
    spec = Adam(lr=0.1, schedule=Constant(), weight_decay=0.2, betas=[0.8, 0.9], eps=1e-3)
    parameter = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = spec.build([{"params": [parameter], "weight_decay": 0.2}])
    w, m, v = parameter.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 5):
        g = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64) * step
        parameter.grad = g.clone()
        optimizer.step()
        g = g + 0.2 * w
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
    torch.testing.assert_close(parameter.detach(), w, rtol=1e-12, atol=1e-12)
