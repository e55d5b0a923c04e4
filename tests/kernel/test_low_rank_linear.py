from __future__ import annotations

import pytest
import torch

from llmfactory.kernel import product
from llmfactory.kernel.low_rank_linear import low_rank_linear, reference


def operands(dtype: torch.dtype, shape: tuple[int, ...] = (2, 5)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((*shape, 6), (7, 6), (3, 6), (7, 3))
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("shape", [(2, 5), (1, 1), (4,), (0, 3)])
def test_equals_the_reference(shape: tuple[int, ...]) -> None:
    x, w, a, b = operands(torch.float64, shape)
    learning = [one.requires_grad_() for one in (x, a, b)]
    mine, other = low_rank_linear(x, w, a, b, 1.5), reference(x, w, a, b, 1.5)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(
        torch.autograd.grad(mine.sin().sum(), learning), torch.autograd.grad(other.sin().sum(), learning), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *args: low_rank_linear(args[0], w, args[1], args[2], 0.5), learning)


@pytest.mark.parametrize("large", [1, 2**24], ids=["one_dnn", "torch"])
def test_what_is_cut_out_of_larger_tensors(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference in float64."""
    monkeypatch.setattr(product, "LARGE", large)
    found = []
    for dtype, function in ((torch.float32, low_rank_linear), (torch.float64, reference)):
        whole = [torch.cat((one, one), -1).to(dtype)[..., : one.shape[-1]] for one in operands(torch.float32)]
        assert not any(one.is_contiguous() for one in whole)
        x, w, a, b = whole
        learning = [one.requires_grad_() for one in (x, a, b)]
        y = function(x, w, a, b, 1.5)
        found.append([y, *torch.autograd.grad(y.sin().sum(), learning)])
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


def test_only_what_is_asked_for() -> None:
    x, w, a, b = operands(torch.float32)
    low_rank_linear(x, w, a.requires_grad_(), b, 1.0).sum().backward()
    assert a.grad is not None
    assert all(one.grad is None for one in (x, b, w))


def test_by_one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LARGE", 1)
    x, w, a, b = operands(torch.float32)
    learning = [one.requires_grad_() for one in (x, a, b)]
    mine, other = low_rank_linear(x, w, a, b, 1.5), reference(x, w, a, b, 1.5)
    torch.testing.assert_close(mine, other)
    for found, wanted in zip(
        torch.autograd.grad(mine.sin().sum(), learning), torch.autograd.grad(other.sin().sum(), learning), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_autocast() -> None:
    x, w, a, b = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank_linear(x, w, a.requires_grad_(), b, 1.0)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert a.grad is not None
    assert a.grad.dtype is torch.float32


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled() -> None:
    """The large product is a call of its own in what the compiler makes."""
    x, w, a, b = operands(torch.float32)
    learning = [one.requires_grad_() for one in (x, a, b)]
    compiled = torch.compile(low_rank_linear, fullgraph=True, backend="aot_eager")
    mine, other = compiled(x, w, a, b, 1.5), reference(x, w, a, b, 1.5)
    torch.testing.assert_close(mine, other)
    for found, wanted in zip(
        torch.autograd.grad(mine.sin().sum(), learning), torch.autograd.grad(other.sin().sum(), learning), strict=True
    ):
        torch.testing.assert_close(found, wanted)
