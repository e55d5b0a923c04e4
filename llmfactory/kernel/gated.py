"""The pointwise middle of a gated linear unit (Shazeer 2020, equation 6), by whichever kernels a job has chosen:

    y = f(gate) up,   dgate = dy up f'(gate),   dup = dy f(gate)

Separate operations keep f(gate) beside both factors; here it is computed again in the backward pass, so that a quarter of what a gated
unit keeps is not. In Triton it is one pass over memory forward and one backward, with numbers in float32 between, or float64 for
float64. SwiGLU: f = silu; GeGLU: f = gelu.
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
    """The same by PyTorch's operations, which keep f(gate)."""
    return activation(gate) * up


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor], name: str, kernel: Kernel = Kernel.torch) -> Tensor:
    """activation(gate) * up, of one shape and format; `name` is the activation's in `model/ffn/spec.py`."""
    by = way(kernel, gate)
    if by is Kernel.triton:
        return _Gated.apply(gate, up, name)  # type: ignore[no-any-return,no-untyped-call]
    if by is Kernel.compile:
        return compiled(plain)(gate, up, activation)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler chooses by itself what it computes again
        return plain(gate, up, activation)
    return _Again.apply(gate, up, activation)  # type: ignore[no-any-return,no-untyped-call]


class _Again(torch.autograd.Function):
    """`plain` without f(gate) kept; the same numbers to the last bit."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = ctx.saved_tensors
        need_gate, need_up, _ = ctx.needs_input_grad
        with torch.enable_grad():
            gate = gate.detach().requires_grad_(need_gate)
            active = ctx.activation(gate)
        dgate = torch.autograd.grad(active, gate, dy * up)[0] if need_gate else None
        return dgate, dy * active.detach() if need_up else None, None


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
