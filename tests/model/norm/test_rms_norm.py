from __future__ import annotations

import pytest
import torch

from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import RmsNorm


def reference(x, gain, eps):
    return x / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * gain


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equation(scale):
    torch.manual_seed(0)
    part = RmsNorm(eps=1e-3).build(16).double()
    part.weight.data.normal_()
    x = (scale * torch.randn(3, 5, 16, dtype=torch.float64)).requires_grad_()
    torch.testing.assert_close(part(x), reference(x, part.weight, 1e-3), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(part, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalized_in_float32(dtype):
    """200^2 x 64 overflows float16, and the result may be off by one rounding of the output only."""
    torch.manual_seed(0)
    part = RmsNorm().build(64)
    part.weight.data.uniform_(0.5, 1.5)
    x = (200 * torch.randn(4, 64)).to(dtype)
    got = part.to(dtype)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got, reference(x.float(), part.weight.float(), 1e-5).to(dtype), rtol=torch.finfo(dtype).eps, atol=0
    )


def test_float32_weights_under_autocast():
    part = RmsNorm().build(64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        got = part(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, part(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_gains_are_not_rounded_first(dtype):
    """Half-precision input, float32 parameters: one rounding at the end, so nearly every number is the exact one rounded."""
    torch.manual_seed(0)
    part = RmsNorm().build(64)
    for parameter in part.parameters():
        parameter.data.uniform_(0.5, 1.5)
    x = torch.randn(64, 64).to(dtype)
    got = part(x)
    assert got.dtype == dtype
    assert (got == reference(x.double(), part.weight.double(), 1e-5).to(dtype)).double().mean() > 0.98


def test_the_gain_is_offset_plus_weight():
    torch.manual_seed(0)
    part = RmsNorm(eps=1e-3, offset=1.0).build(16).double()
    part.weight.data.normal_()
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(part(x), reference(x, 1 + part.weight, 1e-3), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(part, (x,))


@pytest.mark.parametrize("offset", [0.0, 1.0, 0.25])
def test_every_offset_starts_at_a_gain_of_one(offset):
    part, plain = RmsNorm(offset=offset).build(8), RmsNorm().build(8)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(x), plain(x))
    part.weight.data.fill_(7.0)
    initialize(part, 0)
    assert torch.equal(part.weight, torch.full((8,), 1 - offset))
    assert torch.equal(part(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_weight_beside_an_offset_keeps_its_bits(dtype):
    """1 + weight in half precision would lose a weight of 1e-4."""
    part = RmsNorm(offset=1.0).build(64).to(dtype)
    part.weight.data.fill_(1e-4)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = reference(x.double(), 1 + part.weight.double(), 1e-5).to(dtype)
    assert (part(x) == want).double().mean() > 0.98
