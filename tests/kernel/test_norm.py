"""RMSNorm and LayerNorm (kernel/norm.py), in Triton (kernel/tile/norm.py) against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from twice import DEVICES, FORMATS, agree, random

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.norm import layer_norm, plain_rms_norm, rms_norm

SHAPES = [(1, 3), (3, 17), (5, 65), (70, 17), (2, 129), (0, 8)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    x, weight = random(*shape, dtype=dtype, device=device), random(shape[1], dtype=dtype, device=device)
    agree(lambda x, w, kernel: rms_norm(x, w, 1e-5, 1.0, kernel), [x, weight])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    x, weight, bias = (random(*s, dtype=dtype, device=device, seed=n) for n, s in enumerate((shape, shape[1:], shape[1:])))
    agree(lambda x, w, b, kernel: layer_norm(x, w, b, 1e-5, kernel), [x, weight, bias])


@pytest.mark.parametrize("device", DEVICES)
def test_without_gain_or_bias(device: str) -> None:
    x, weight = random(3, 17, dtype=torch.float64, device=device), random(17, dtype=torch.float64, device=device)
    agree(lambda x, kernel: layer_norm(x, None, None, 1e-3, kernel), [x])
    agree(lambda x, w, kernel: layer_norm(x, w, None, 1e-3, kernel), [x, weight])
    agree(lambda x, b, kernel: layer_norm(x, None, b, 1e-3, kernel), [x, weight])
    agree(lambda x, w, kernel: rms_norm(x, w, 1e-3, 0.0, kernel), [x, weight])


@pytest.mark.parametrize("device", DEVICES)
def test_strided_rows_of_several_dimensions(device: str) -> None:
    """As queries come to their norm: heads before tokens, in memory behind them."""
    x = random(2, 3, 5, 8, dtype=torch.float64, device=device, strided=True)
    assert not x.is_contiguous()
    weight = random(8, dtype=torch.float64, device=device)
    agree(lambda x, w, kernel: rms_norm(x, w, 1e-5, 0.0, kernel), [x, weight])
    agree(lambda x, w, kernel: layer_norm(x, w, w + 1, 1e-5, kernel), [x, weight])


@pytest.mark.parametrize("device", DEVICES)
def test_rows_in_half_precision_and_a_gain_in_full(device: str) -> None:
    """Under autocast: the gain's gradient keeps its own format, and is summed up in float32."""
    x = torch.full((600, 4), 1.0, dtype=torch.bfloat16, device=device)
    weight = torch.ones(4, device=device, requires_grad=True)
    y = rms_norm(x, weight, 1e-5, 0.0, Kernel.triton)
    y.backward(torch.ones_like(y))
    assert weight.grad is not None
    assert weight.grad.dtype is torch.float32
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 600.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str) -> None:
    def gradients() -> list[Tensor]:
        x, weight = (random(*shape, dtype=torch.float32, device=device).requires_grad_() for shape in ((70, 17), (17,)))
        return list(torch.autograd.grad(rms_norm(x, weight, 1e-5, 0.0, Kernel.triton).square().sum(), [x, weight]))

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_keeps_rows_and_a_number_each(offset: float) -> None:
    """Values and gradients are those of PyTorch's operations, and those of differences; strided rows, and in half precision."""
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.bfloat16, 2e-2)):
        found, kept = [], []
        for way in (rms_norm, plain_rms_norm):
            x = random(2, 3, 5, 8, dtype=dtype, device="cpu", strided=True).requires_grad_()
            weight = random(8, dtype=torch.promote_types(dtype, torch.float32), device="cpu", seed=1).requires_grad_()
            sizes: dict[int, int] = {}

            def seen(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[t.untyped_storage().data_ptr()] = t.nbytes
                return t

            with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
                y = way(x, weight, 1e-3, offset)
            slope = random(2, 3, 5, 8, dtype=torch.float64, device="cpu", seed=2).to(y.dtype)
            found.append([y.detach(), *torch.autograd.grad(y, (x, weight), slope)])
            kept.append(sum(sizes.values()))
        for one, other in zip(*found, strict=True):
            assert one.dtype is other.dtype
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        assert kept[0] < 0.75 * kept[1]
    leaves = [random(*shape, dtype=torch.float64, device="cpu").requires_grad_() for shape in ((2, 3, 4), (4,))]
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3, offset), leaves)
    x, weight = (leaf.detach().requires_grad_(number == 0) for number, leaf in enumerate(leaves))
    rms_norm(x, weight, 1e-3, offset).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
