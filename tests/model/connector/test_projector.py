from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError
from llmfactory.model.connector.spec import Projector
from llmfactory.model.declarations import declarations
from llmfactory.model.ffn.spec import Activation


def made(**changes):
    part = Projector(**{"n_layers": 2, **changes}).build(6, 4, 0.5).double()
    for parameter in part.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return part


@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_with_a_nonlinearity_between(bias):
    part, x = made(n_layers=3, activation=Activation.relu, bias=bias), torch.randn(2, 5, 6, dtype=torch.float64)
    want = x
    for number in range(3):
        if number:
            want = want.clamp_min(0)
        want = want @ part.maps[number].weight.T
        if bias:
            want = want + part.maps[number].bias
    assert want.shape == (2, 5, 4)
    torch.testing.assert_close(part(x), want, rtol=1e-12, atol=1e-12)
    assert len(list(part.parameters())) == (6 if bias else 3)


def test_one_map_has_no_nonlinearity():
    part, x = made(n_layers=1), torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(part(x), x @ part.maps[0].weight.T + part.maps[0].bias, rtol=1e-12, atol=1e-12)


def test_declarations_and_counts():
    part = made()
    assert set(declarations(part)) == {name for name, _ in part.named_parameters()}
    assert Projector(n_layers=2).n_vectors(9) == 9
    with pytest.raises(ConfigError, match="at least 1"):
        Projector(n_layers=0)
