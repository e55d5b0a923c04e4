"""Plain recurrence against torch.nn.RNN with the same weights, and on packed rows."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.mixer.spec import Rnn, Squash


@pytest.mark.parametrize("activation", Squash)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(mixer, activation: Squash, bias: bool) -> None:
    ours = mixer(Rnn(activation=activation, bias=bias))
    theirs = torch.nn.RNN(16, 16, nonlinearity=activation.name, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.x.weight)
        theirs.weight_hh_l0.copy_(ours.h.weight)
        if bias:
            theirs.bias_ih_l0.copy_(ours.x.bias)
            theirs.bias_hh_l0.zero_()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x, Context(torch.arange(7)[None], CausalMask(7))), theirs(x)[0], rtol=1e-10, atol=1e-12)


def test_laws(mixer, law) -> None:
    law(mixer(Rnn()))
