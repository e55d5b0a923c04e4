from __future__ import annotations

import pytest
import torch

from llmfactory.kernel.grouped_linear import grouped_linear, reference
from llmfactory.kernel.product import LARGE


@pytest.fixture(autouse=True, params=[0, LARGE], ids=["one_dnn", "torch"])
def _large(request, monkeypatch):
    """From which size on oneDNN is asked: always, or for none of these."""
    monkeypatch.setattr("llmfactory.kernel.product.LARGE", request.param)


def operands(dtype, inner=16, outer=24, counts=(3, 0, 5, 1)):
    torch.manual_seed(0)
    x = torch.randn(sum(counts), inner, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(counts), outer, inner, dtype=dtype, requires_grad=True)
    return x, weight, torch.tensor(counts).cumsum(0).to(torch.int32)


def plainly(x, weight, ends):
    """Each row by itself."""
    groups = [sum(int(end) <= row for end in ends) for row in range(len(x))]
    return torch.stack([weight[group] @ row for group, row in zip(groups, x, strict=True)])


@pytest.mark.parametrize("counts", [(3, 0, 5, 1), (0, 0, 4, 0), (9, 1, 1, 0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(dtype, tolerance, counts):
    x, weight, ends = operands(dtype, counts=counts)
    coefficients = torch.randn(len(x), 24, dtype=dtype)
    results = []
    for function in (grouped_linear, reference, plainly):
        x.grad = weight.grad = None
        y = function(x, weight, ends)
        (y * coefficients).sum().backward()
        results.append((y.detach(), x.grad, weight.grad))
    for ours in results[:2]:
        for got, want in zip(ours, results[2], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(("inner", "outer"), [(15, 24), (16, 23)])
def test_widths_that_the_grouped_product_refuses(inner, outer):
    x, weight, ends = operands(torch.float32, inner, outer)
    torch.testing.assert_close(grouped_linear(x, weight, ends), plainly(x, weight, ends))


def test_a_view_with_other_strides():
    x, weight, ends = operands(torch.float32)
    wide = torch.cat([x.detach(), x.detach()], 1)[:, 16:]
    turned = weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(grouped_linear(wide, turned, ends), plainly(wide, turned, ends))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_the_gradient_that_is_asked_for(frozen):
    x, weight, ends = operands(torch.float32)
    {"x": x, "weight": weight}[frozen].requires_grad_(False)
    y = grouped_linear(x, weight, ends)
    y.sum().backward()
    assert (x.grad is None, weight.grad is None) == (frozen == "x", frozen == "weight")
    got = weight.grad if frozen == "x" else x.grad
    plain = (weight if frozen == "x" else x).detach().requires_grad_()
    plainly(*((x, plain) if frozen == "x" else (plain, weight)), ends).sum().backward()
    torch.testing.assert_close(got, plain.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, where a graph breaks
def test_compiled():
    """A break of the graph, not an error."""
    x, weight, ends = operands(torch.float32)

    @torch.compile(backend="eager")
    def twice(x):
        return 2 * grouped_linear(2 * x, weight, ends)

    y = twice(x)
    torch.testing.assert_close(y, 4 * plainly(x, weight, ends))
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(gradient, 4 * torch.autograd.grad(plainly(x, weight, ends).sum(), weight)[0])


def test_autocast():
    x, weight, ends = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, weight, ends)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, grouped_linear(x.bfloat16(), weight.bfloat16(), ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_rows_at_all(dtype):
    """A process whose experts nobody visits still has a gradient for them: zeros."""
    x, weight = torch.empty(0, 16, dtype=dtype, requires_grad=True), torch.randn(3, 32, 16, dtype=dtype, requires_grad=True)
    y = grouped_linear(x, weight, torch.zeros(3, dtype=torch.int32))
    y.sum().backward()
    assert y.shape == (0, 32)
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
