"""Compile Triton kernels for a GPU on a machine without one: `with compile_only():` every launch compiles and computes nothing.

To be run in a process of its own, in which TRITON_INTERPRET is not set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoDriver:
    """Says what to compile for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        raise RuntimeError("there is no device")


@contextmanager
def compile_only(capability: int = 90) -> Iterator[list[Any]]:
    """Collects the compiled kernels."""
    found: list[Any] = []
    launch = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        found.append(launch(self, *args, grid=grid, warmup=True, **options))
        return found[-1]

    driver.set_active(NoDriver(capability))
    JITFunction.run = run
    try:
        yield found
    finally:
        JITFunction.run = launch


assert not triton.knobs.runtime.interpret, "nothing is compiled where kernels are interpreted"
