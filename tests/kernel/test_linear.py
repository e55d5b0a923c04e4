from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmfactory.kernel import product
from llmfactory.kernel.linear import Product, linear, matrix_of, quicken


def test_a_linear_map_in_two_steps() -> None:
    linear, x = nn.Linear(3, 4), torch.randn(2, 3)
    apart = Product(3, 4)
    apart.load_state_dict(linear.state_dict())
    torch.testing.assert_close(apart(x), linear(x))
    assert torch.equal(apart.product(x), F.linear(x, linear.weight))
    assert matrix_of(linear) is linear.weight
    assert matrix_of(apart) is apart.weight
    assert Product(3, 4, bias=False).offset() is None


def gradients(function, x, weight, bias):
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias) if one is not None]
    y = function(*leaves)
    y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)], ids=["matrix", "rows"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_all_three_products(monkeypatch, shape, biased, transposed) -> None:
    """Against float64, through the function of our own."""
    monkeypatch.setattr(product, "LARGE", 0)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(4, 5), torch.randn(4) if biased else None
    if transposed:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
        weight = weight.t().contiguous().t()
    assert type(linear(x.requires_grad_(), weight).grad_fn).__name__ == "ViewBackward0"
    assert "_Linear" in str(linear(x, weight).grad_fn.next_functions)
    mine = gradients(linear, x.detach(), weight, bias)
    exact = gradients(F.linear, *(None if one is None else one.detach().double() for one in (x, weight, bias)))
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_who_is_left_to_torch(monkeypatch) -> None:
    monkeypatch.setattr(product, "LARGE", 0)
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    for y in (linear(x.double(), weight.double()), linear(x[0], weight)):
        assert "_Linear" not in str(y.grad_fn.next_functions)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(product, "LARGE", 10**6)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_model_runs_by_it(monkeypatch) -> None:
    """What stays frozen gets no gradient; names and classes stay."""
    monkeypatch.setattr(product, "LARGE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    model[0].weight.requires_grad_(False)
    x, names = torch.randn(5, 3), list(dict(model.named_parameters()))
    expected = model(x)
    quicken(model)
    y = model(x)
    torch.testing.assert_close(y, expected)
    assert list(dict(model.named_parameters())) == names
    assert [type(one) for one in model] == [nn.Linear, nn.Linear]
    y.sum().backward()
    assert model[0].weight.grad is None
    torch.testing.assert_close(model[0].bias.grad, (torch.ones(5, 2) @ model[1].weight).sum(0))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled(monkeypatch) -> None:
    """The products are calls of their own in what the compiler makes; the bias is not."""
    monkeypatch.setattr("llmfactory.kernel.linear.LARGE", 0)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(6, 3), torch.randn(4, 3), torch.randn(4)
    torch.compiler.reset()
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(compiled, x, weight, bias), gradients(F.linear, x, weight, bias), strict=True):
        torch.testing.assert_close(one, other)
