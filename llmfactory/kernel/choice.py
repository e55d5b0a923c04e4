"""Who computes the operations of parts that have several ways to the same numbers.

The choice is made once for a whole job (`trainer.kernel`) and set on the parts of a built model; each operation then asks `way`
with the tensor that it is about to work on. Triton is imported only where a kernel is launched, so that its absence breaks nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.core.kernel import Kernel, interpreted

if TYPE_CHECKING:
    from torch import Tensor


def way(kernel: Kernel, x: Tensor, fused_in_torch: bool = False) -> Kernel:
    """Who computes an operation on `x`: torch, triton or compile. `fused_in_torch`: PyTorch has a kernel of its own for all of it,
    which `auto` then takes."""
    import torch

    if kernel is not Kernel.auto:
        return kernel
    # A compiler that sees all of a model fuses by itself, and cannot look into kernels of others.
    if fused_in_torch or not x.is_cuda or torch.compiler.is_compiling():
        return Kernel.torch
    return Kernel.triton if has_triton() else Kernel.torch


@functools.cache
def has_triton() -> bool:
    """Whether the package is installed."""
    return find_spec("triton") is not None


def insist_on(kernel: Kernel, device_type: str) -> None:
    """Raises UserError where a job asks for kernels that cannot run on its devices."""
    if kernel is not Kernel.triton:
        return
    if not has_triton():
        raise MissingExtra("triton", "triton", "trainer.kernel=triton")
    if device_type == "cpu" and not interpreted():
        raise UserError(
            "trainer.kernel=triton: Triton compiles for GPUs only, and there is none here: trainer.kernel=auto, or set "
            "TRITON_INTERPRET=1 in the environment to have small models computed by its interpreter, some thousand times slower"
        )


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain operation, through torch.compile."""
    import torch

    return torch.compile(function)
