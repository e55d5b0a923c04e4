from __future__ import annotations

import pytest
import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.ffn.spec import Activation, Mlp


@pytest.mark.parametrize("bias", [True, False])
def test_equation(bias, site):
    torch.manual_seed(0)
    part = Mlp(hidden=12, activation=Activation.relu2, bias=bias).build(site(dim=4)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = (x @ part.up.weight.T + (part.up.bias if bias else 0)).clamp_min(0) ** 2
    want = hidden @ part.down.weight.T + (part.down.bias if bias else 0)
    torch.testing.assert_close(part(x, None), want, rtol=1e-12, atol=1e-12)


def test_declarations(site):
    declared = Mlp(hidden=12, activation=Activation.gelu).build(site(dim=4)).declare()
    assert {name: entry.layout for name, entry in declared.items()} == {
        "up.weight": Layout.column,
        "up.bias": Layout.column,
        "down.weight": Layout.row,
        "down.bias": Layout.replicated,
    }
    assert declared["up.weight"].start.std == 0.02
    assert declared["down.weight"].start.std == 0.005
    assert not declared["up.bias"].decay
