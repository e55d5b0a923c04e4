"""A kernel in Triton and its plain reference: results and gradients, the reference in float64.

Under the interpreter on the CPU; on a GPU (`-m gpu`) the same tests run compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfactory.core.kernel import Kernel, interpreted

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not interpreted(), reason="kernels are compiled here, for the GPU")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]),
]
FORMATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error by the largest number; of float64 products of many numbers, which constants in float32 would already miss."""


def random(*shape: int, dtype: torch.dtype, device: str, seed: int = 0, strided: bool = False) -> Tensor:
    """Normal numbers that are exact in `dtype`; `strided`: every other column of a wider tensor, the first two dimensions swapped."""
    make = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype).to(device)
    if not strided:
        return x
    if len(shape) < 2:
        return torch.stack((x, x), -1)[..., 0]
    return torch.stack((x, x), -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]


def agree(function: Callable[..., Tensor], tensors: list[Tensor], tolerance: float | None = None) -> None:
    """`function(*tensors, kernel)` is the same in Triton as by the plain reference in float64, and so are its gradients."""
    dtype = tensors[0].dtype
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    found = []
    for kernel, exact in ((Kernel.triton, dtype), (Kernel.torch, torch.float64)):
        leaves = [x.detach().to(exact).requires_grad_() for x in tensors]
        if kernel is Kernel.triton:  # the strides too
            leaves = [x.detach().requires_grad_() for x in tensors]
        # What a function works on is made of the leaves, as in a model: it may be given up.
        y = function(*(x * 1 if x.is_contiguous() else x for x in leaves), kernel)
        if not found:
            assert y.dtype in (dtype, torch.promote_types(dtype, torch.float32))
            slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.device)
        gradients = torch.autograd.grad(y, leaves, slope.to(y.dtype))
        if kernel is Kernel.triton:
            assert [g.dtype for g in gradients] == [x.dtype for x in tensors]
        found.append([y.detach(), *gradients])
    for place, (ours, plain) in enumerate(zip(*found, strict=True)):
        assert ours.shape == plain.shape
        if ours.numel():
            error, largest = (ours.double() - plain).abs().max().item(), plain.abs().max().item()
            assert error <= tolerance * max(largest, 1e-2), (place, error, largest)
