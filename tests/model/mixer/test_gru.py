"""GRU against torch.nn.GRU with the same weights, and on packed rows."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context
from llmfactory.model.mixer.spec import Gru


@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(mixer, bias: bool) -> None:
    ours = mixer(Gru(bias=bias))
    theirs = torch.nn.GRU(16, 16, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in (("weight_ih", ours.x.weight), ("weight_hh", ours.h.weight)):
            getattr(theirs, f"{name}_l0").copy_(tensor)
        if bias:
            theirs.bias_ih_l0.copy_(ours.x.bias)
            theirs.bias_hh_l0.copy_(ours.h.bias)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x, Context(torch.arange(7)[None], CausalMask(7))), theirs(x)[0], rtol=1e-10, atol=1e-12)


def test_laws(mixer, law) -> None:
    law(mixer(Gru()))
