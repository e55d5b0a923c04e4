from __future__ import annotations

import math

import pytest
import torch

from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Activation

PLAIN = {
    Activation.relu: lambda x: max(x, 0.0),
    Activation.gelu: lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    Activation.gelu_tanh: lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    Activation.silu: lambda x: x / (1 + math.exp(-x)),
    Activation.relu2: lambda x: max(x, 0.0) ** 2,
    Activation.tanh: math.tanh,
    Activation.quick_gelu: lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("kind", Activation)
def test_equation(kind):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    want = torch.tensor([PLAIN[kind](float(value)) for value in x], dtype=torch.float64)
    torch.testing.assert_close(FUNCTIONS[kind](x), want, rtol=1e-12, atol=1e-12)
