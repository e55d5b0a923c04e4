"""SGD against its formula."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Sgd


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_the_formula(nesterov: bool) -> None:
    spec = Sgd(lr=0.1, schedule=Constant(), weight_decay=0.2, momentum=0.7, nesterov=nesterov)
    parameter = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = spec.build([{"params": [parameter], "weight_decay": 0.2}])
    w, v = parameter.detach().clone(), torch.zeros(2).double()
    for step in range(1, 5):
        raw = torch.tensor([0.5, -1.5], dtype=torch.float64) * step
        g = raw + 0.2 * w
        v = 0.7 * v + g
        w = w - 0.1 * (g + 0.7 * v if nesterov else v)
        parameter.grad = raw
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), w, rtol=1e-12, atol=1e-12)


def test_state_copies() -> None:
    assert Sgd(lr=0.1, schedule=Constant()).state_copies() == 1
    assert Sgd(lr=0.1, schedule=Constant(), momentum=0.0).state_copies() == 0


def test_nesterov_without_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        Sgd(lr=0.1, schedule=Constant(), momentum=0.0, nesterov=True)
