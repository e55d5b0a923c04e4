"""Products of 8-bit numbers: against a plain form, against torchao, on hardware's own product, and what rounding does to them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from llmfactory.kernel.eight_bit_linear import EightBit, Numbers, eight_bit_linear, power_of_two_below, quantized

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
TENSOR, ROWS = Numbers(E4M3, E5M2, rows=False, emulate=True), Numbers(E4M3, E4M3, rows=True, emulate=True)
WHOLE = Numbers(INT8, INT8, rows=True)
ALL = {"tensor": TENSOR, "rows": ROWS, "int8": WHOLE}
SHAPES = [(32, 48, 64), (5, 7, 3), (1, 1, 1), (17, 130, 2)]
DIGITS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57344.0)}
"""Bits of the significand, least exponent of a normal number, largest number."""


@pytest.fixture
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    n, i, o = request.param
    random = torch.Generator().manual_seed(n)
    x, weight, dy = (torch.randn(shape, generator=random) for shape in ((n, i), (o, i), (n, o)))
    return x, weight * 0.1, dy * 1e-3


def everything(x: Tensor, weight: Tensor, dy: Tensor, numbers: Numbers, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = eight_bit_linear(x, weight, numbers, **more)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy)


def plain_float8(value: float, kind: torch.dtype) -> float:
    """The nearest number of the format, ties to even, by its definition."""
    bits, least, top = DIGITS[kind]
    if value == 0:
        return 0.0
    exponent = max(math.frexp(value)[1] - 1, least)
    digit = 2.0 ** (exponent - bits)
    return max(-top, min(top, round(value / digit) * digit))


def plain_quantized(x: Tensor, kind: torch.dtype, rows: bool) -> Tensor:
    """Operands [M, K] as they are multiplied, number by number in float64."""
    found = torch.empty(x.shape, dtype=torch.float64)
    whole = x.abs().max().item()
    for row, values in zip(found, x.tolist(), strict=True):
        largest = max(map(abs, values)) if rows else whole
        if kind is INT8:
            row[:] = torch.tensor([round(value / (largest / 127)) * (largest / 127) for value in values])
        else:
            factor = 2.0 ** math.floor(math.log2(DIGITS[kind][2] / largest))
            row[:] = torch.tensor([plain_float8(value * factor, kind) / factor for value in values])
    return found


@pytest.mark.parametrize("case", SHAPES, indirect=True)
@pytest.mark.parametrize("name", ALL)
def test_equals_the_plain_form(case: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    x, weight, dy = case
    numbers = ALL[name]
    front, back, rows = numbers.forward, numbers.backward, numbers.rows
    expected = (
        plain_quantized(x, front, rows) @ plain_quantized(weight, front, rows).T,
        plain_quantized(dy, back, rows) @ plain_quantized(weight.T, front, rows).T,
        plain_quantized(dy.T, back, rows) @ plain_quantized(x.T, front, rows).T,
    )
    for found, right in zip(everything(x, weight, dy, numbers), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6 * right.abs().max().item())


@pytest.mark.parametrize("case", [(32, 48, 64), (16, 32, 16)], indirect=True)
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_equals_torchao_s_float8(case: tuple[Tensor, Tensor, Tensor], recipe: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.float8.config import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear

        if recipe == "tensorwise":
            config = Float8LinearConfig(emulate=True, round_scales_to_power_of_2=True)
        else:
            config = Float8LinearConfig.from_recipe_name(recipe)
            object.__setattr__(config, "emulate", True)
        x, weight, dy = case
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        plain.weight.data = weight.clone()
        theirs, given = Float8Linear.from_float(plain, config), x.clone().requires_grad_()
        y = theirs(given)
        y.backward(dy)
        right = (y.detach(), given.grad, theirs.weight.grad)
    for found, one in zip(everything(x, weight, dy, TENSOR if recipe == "tensorwise" else ROWS), right, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-6 * one.abs().max().item())


@pytest.mark.parametrize("case", [(32, 48, 64), (5, 7, 3)], indirect=True)
def test_equals_torchao_s_int8(case: tuple[Tensor, Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.quantized_training.int8 import quantize_int8_rowwise
    x, weight, dy = case
    for one in (x, weight, dy.T):
        codes, scale = quantized(one, INT8, rows=True)
        their_codes, their_scale = quantize_int8_rowwise(one)
        assert codes.equal(their_codes)
        assert scale[:, 0].equal(their_scale)
    (a, scale_a), (b, scale_b) = quantize_int8_rowwise(x), quantize_int8_rowwise(weight)
    torch.testing.assert_close(everything(x, weight, dy, WHOLE)[0], (a.int() @ b.int().T).float() * scale_a[:, None] * scale_b)


@pytest.mark.parametrize("case", SHAPES, indirect=True)
@pytest.mark.parametrize("numbers", [TENSOR, ROWS], ids=["tensor", "rows"])
def test_the_emulated_product_is_the_hardware_s(case: tuple[Tensor, Tensor, Tensor], numbers: Numbers) -> None:
    """`torch._scaled_mm` itself, which the CPU has a form of. With a scale for each row it gives bfloat16."""
    for found, right in zip(
        everything(*case, Numbers(numbers.forward, numbers.backward, numbers.rows)), everything(*case, numbers), strict=True
    ):
        tolerance = 2**-8 if numbers.rows else 1e-5
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance * 1e-1 * right.abs().max().item())


@pytest.mark.gpu
@pytest.mark.parametrize("case", SHAPES, indirect=True)
@pytest.mark.parametrize("numbers", [TENSOR, ROWS, WHOLE], ids=["tensor", "rows", "int8"])
def test_on_a_gpu(case: tuple[Tensor, Tensor, Tensor], numbers: Numbers) -> None:
    there = [one.cuda() for one in case]
    hardware = Numbers(numbers.forward, numbers.backward, numbers.rows)
    for found, right in zip(everything(*there, hardware), everything(*case, numbers), strict=True):
        torch.testing.assert_close(found.cpu(), right, rtol=2**-8, atol=2**-10 * right.abs().max().item())


@pytest.mark.parametrize("name", ALL)
def test_what_is_lost(name: str) -> None:
    """Of a product of 256 numbers: E4M3 has 4 bits, int8 about 7."""
    random = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(shape, generator=random) for shape in ((64, 256), (128, 256), (64, 128)))
    exact = (x @ weight.T, dy @ weight, dy.T @ x)
    for found, right, bound in zip(everything(x, weight, dy, ALL[name]), exact, (0.04, 0.07, 0.07), strict=True):
        lost = float((found - right).norm() / right.norm())
        assert 0.2 * bound < lost < bound if name != "int8" else lost < 0.012


@pytest.mark.parametrize("numbers", [TENSOR, ROWS], ids=["tensor", "rows"])
def test_scales_of_two_powers_do_not_depend_on_the_cut(numbers: Numbers) -> None:
    """Pieces of a matrix, each with a scale of its own, give the whole's product: what tensor parallelism sums."""
    random = torch.Generator().manual_seed(1)
    x, weight = torch.randn(16, 64, generator=random), torch.randn(8, 64, generator=random)
    x[:, :32] *= 30
    whole = eight_bit_linear(x, weight, numbers)
    cut = sum(eight_bit_linear(a, b, numbers) for a, b in zip(x.chunk(2, 1), weight.chunk(2, 1), strict=True))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-3)


def test_powers_of_two() -> None:
    x = torch.tensor([1.0, 1.999, 2.0, 0.75, 448e12, 3e-38])
    assert power_of_two_below(x).tolist() == [2.0 ** math.floor(math.log2(value)) for value in x.tolist()]


@pytest.mark.parametrize("name", ALL)
def test_zeros_and_what_is_no_number(name: str) -> None:
    x, weight = torch.zeros(4, 8), torch.randn(3, 8)
    for one in everything(x, weight, torch.zeros(4, 3), ALL[name]):
        assert not one.any()
    for bad in (torch.nan, torch.inf):
        x = torch.randn(4, 8)
        x[2, 3] = bad
        y = eight_bit_linear(x, weight, ALL[name])
        assert not y[2].isfinite().any(), "it must be seen in the loss"
        if ALL[name].rows:
            assert y[[0, 1, 3]].isfinite().all()


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    torch.manual_seed(0)
    numbers = Numbers(INT8, INT8, rows=True, stochastic=True)
    x, weight, dy = torch.randn(8, 16), torch.randn(4, 16), torch.randn(8, 4)
    drawn = [everything(x, weight, dy, numbers) for _ in range(200)]
    exact = (x @ weight.T, dy @ weight, dy.T @ x)
    near = everything(x, weight, dy, WHOLE)
    for number, right in enumerate(exact):
        mean = torch.stack([one[number] for one in drawn]).mean(0)
        single = (drawn[0][number] - right).norm()
        assert (mean - right).norm() < 0.2 * single
        assert not drawn[0][number].equal(drawn[1][number])
        assert (mean - right).norm() < 0.5 * (near[number] - right).norm()


def test_stochastic_rounding_follows_the_seed_and_rests_in_evaluation() -> None:
    numbers = Numbers(INT8, INT8, rows=True, stochastic=True)
    x, linear = torch.randn(8, 16), torch.nn.Linear(16, 4)
    linear.__class__ = EightBit
    linear.__dict__["numbers"] = numbers

    def under(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return linear(x).detach()

    assert under(1).equal(under(1))
    assert not under(1).equal(under(2))
    linear.eval()
    assert under(1).equal(under(2))
    assert under(1).equal(eight_bit_linear(x, linear.weight, WHOLE) + linear.bias)


def test_products_run_in_autocast_s_format() -> None:
    x, weight = torch.randn(2, 3, 8), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = eight_bit_linear(x, weight, ROWS)
    assert y.dtype == torch.bfloat16
    assert y.shape == (2, 3, 4)
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_only_what_learns_has_a_gradient() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    (dx,) = torch.autograd.grad(eight_bit_linear(x, weight, TENSOR).sum(), x)
    assert dx.shape == x.shape
    weight.requires_grad_()
    eight_bit_linear(x.detach(), weight, TENSOR).sum().backward()
    assert weight.grad is not None
