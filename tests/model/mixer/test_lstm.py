"""LSTM against torch.nn.LSTM with the same weights, and on packed rows."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.model.initialize import initialize
from llmfactory.model.mixer.spec import Lstm


@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(mixer, bias: bool) -> None:
    ours = mixer(Lstm(bias=bias))
    theirs = torch.nn.LSTM(16, 16, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.x.weight)
        theirs.weight_hh_l0.copy_(ours.h.weight)
        if bias:
            theirs.bias_ih_l0.copy_(ours.x.bias)
            theirs.bias_hh_l0.zero_()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    y = ours(x, Context(torch.arange(7)[None], CausalMask(7)))
    expected = theirs(x)[0]
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.h.weight.grad, theirs.weight_hh_l0.grad, rtol=1e-9, atol=1e-12)


def test_laws(mixer, law) -> None:
    law(mixer(Lstm()))


def test_the_forget_gate_starts_open(site) -> None:
    part = Lstm(forget_bias=1.0).build(site())
    initialize(part, 0)
    assert part.x.bias.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_a_forget_bias_needs_biases() -> None:
    with pytest.raises(ConfigError, match="no bias"):
        Lstm(bias=False, forget_bias=1.0)
