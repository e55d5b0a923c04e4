from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from llmfactory.kernel.linear import Product, matrix_of


def test_a_linear_map_in_two_steps() -> None:
    linear, x = nn.Linear(3, 4), torch.randn(2, 3)
    apart = Product(3, 4)
    apart.load_state_dict(linear.state_dict())
    torch.testing.assert_close(apart(x), linear(x))
    assert torch.equal(apart.product(x), F.linear(x, linear.weight))
    assert matrix_of(linear) is linear.weight
    assert matrix_of(apart) is apart.weight
    assert Product(3, 4, bias=False).offset() is None
