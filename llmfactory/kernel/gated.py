"""The pointwise middle of a gated linear unit (Shazeer 2020, equation 6), by whichever kernels a job has chosen:

    y = f(gate) up,   dgate = dy up f'(gate),   dup = dy f(gate)

One pass over memory forward and one backward, where separate operations keep f(gate) and go through everything three times. Numbers
are float32 between, or float64 for float64. SwiGLU: f = silu; GeGLU: f = gelu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import compiled, way


def plain(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The same by PyTorch's operations."""
    return activation(gate) * up


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor], name: str, kernel: Kernel = Kernel.torch) -> Tensor:
    """activation(gate) * up, of one shape and format; `name` is the activation's in `model/ffn/spec.py`."""
    by = way(kernel, gate)
    if by is Kernel.triton:
        return _Gated.apply(gate, up, name)  # type: ignore[no-any-return,no-untyped-call]
    return (compiled(plain) if by is Kernel.compile else plain)(gate, up, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        from llmfactory.kernel.tile import gated

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.name = name
        return gated.forward(gate, up, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        from llmfactory.kernel.tile import gated

        gate, up = ctx.saved_tensors
        return (*gated.backward(dy.contiguous(), gate, up, ctx.name), None)
