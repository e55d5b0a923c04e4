from __future__ import annotations

import pytest
import torch

from llmfactory.model.norm.spec import LayerNorm


def reference(x, gain, bias, eps):
    x = x.double()
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * gain + bias


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equation(bias, gain):
    torch.manual_seed(0)
    part = LayerNorm(eps=1e-2, bias=bias, gain=gain).build(16).double()
    for parameter in part.parameters():
        parameter.data.normal_()
    x = (0.3 + torch.randn(3, 5, 16, dtype=torch.float64)).requires_grad_()
    shift = part.bias if bias else 0.0
    factor = part.weight if gain else 1.0
    torch.testing.assert_close(part(x), reference(x, factor, shift, 1e-2), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(part, (x,))
    assert set(part.declare()) == {name for name, there in (("weight", gain), ("bias", bias)) if there}
    assert set(part.declare()) == {name for name, _ in part.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalized_in_float32(dtype):
    torch.manual_seed(0)
    part = LayerNorm().build(64).to(dtype)
    x = (100 + 200 * torch.randn(4, 64)).to(dtype)
    got = part(x)
    assert got.dtype == dtype
    want = reference(x, 1.0, 0.0, 1e-5).to(dtype)
    torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_float32_under_autocast():
    part = LayerNorm().build(64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        got = part(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, part(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_gains_are_not_rounded_first(dtype):
    """Half-precision input, float32 parameters: one rounding at the end, so nearly every number is the exact one rounded."""
    torch.manual_seed(0)
    part = LayerNorm().build(64)
    for parameter in part.parameters():
        parameter.data.uniform_(0.5, 1.5)
    x = torch.randn(64, 64).to(dtype)
    got = part(x)
    assert got.dtype == dtype
    assert (got == reference(x, part.weight.double(), part.bias.double(), 1e-5).to(dtype)).double().mean() > 0.98
