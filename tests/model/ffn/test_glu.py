from __future__ import annotations

import pytest
import torch

from llmfactory.core.sharding import Layout
from llmfactory.model.ffn.spec import Activation, Glu


@pytest.mark.parametrize("bias", [True, False])
def test_equation(bias, site):
    torch.manual_seed(0)
    part = Glu(hidden=12, activation=Activation.silu, bias=bias).build(site(dim=4)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)

    def linear(layer, value):
        return value @ layer.weight.T + (layer.bias if bias else 0)

    gate = linear(part.gate, x)
    want = linear(part.down, gate * gate.sigmoid() * linear(part.up, x))
    torch.testing.assert_close(part(x, None), want, rtol=1e-12, atol=1e-12)


def test_declarations(site):
    declared = Glu(hidden=12, activation=Activation.gelu, bias=True).build(site(dim=4)).declare()
    assert {name: entry.layout for name, entry in declared.items()} == {
        **{f"{name}.{kind}": Layout.column for name in ("gate", "up") for kind in ("weight", "bias")},
        "down.weight": Layout.row,
        "down.bias": Layout.replicated,
    }
    assert {declared[name].start.std for name in ("gate.weight", "up.weight")} == {0.02}
    assert declared["down.weight"].start.std == 0.005
