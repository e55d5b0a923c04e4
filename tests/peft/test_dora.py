from __future__ import annotations

import pytest
import torch
from plain_model import GPT2, LLAMA, MOE, filled, logits, moved, trained

from llmfactory.core.errors import UserError
from llmfactory.peft.dora import DoraAdapter
from llmfactory.peft.part import changing
from llmfactory.peft.spec import Dora


@pytest.mark.parametrize("overrides", [GPT2, LLAMA])
def test_directions_and_magnitudes(overrides: list[str]) -> None:
    """Liu et al. 2024, equation 5, and their section 4.3: no gradient through the norm."""
    before, model = filled(overrides), filled(overrides, Dora(rank=3, alpha=4.5))
    torch.testing.assert_close(logits(model), logits(before), rtol=1e-10, atol=1e-12)
    assert all(".adapters." in name for name in trained(model))
    moved(model)
    name = "blocks.1.ffn.up.weight"
    (adapter,) = changing(model)[name]
    assert isinstance(adapter, DoraAdapter)
    weight, linear = model.get_parameter(name), model.get_submodule(name.removesuffix(".weight"))
    direction = weight + 1.5 * adapter.b @ adapter.a
    matrix = adapter.magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True).detach()
    x = torch.randn(5, weight.shape[1], dtype=torch.float64)
    expected = x @ matrix.T + (0 if linear.bias is None else linear.bias)
    torch.testing.assert_close(linear(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(adapter.matrix(weight), matrix, rtol=1e-10, atol=1e-12)
    own = [adapter.a, adapter.b, adapter.magnitude]
    for mine, other in zip(
        torch.autograd.grad(linear(x).sin().sum(), own), torch.autograd.grad(expected.sin().sum(), own), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_experts_are_refused() -> None:
    with pytest.raises(UserError, match="stack of experts"):
        filled(MOE, Dora())
