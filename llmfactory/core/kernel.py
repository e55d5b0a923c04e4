"""Which implementation of an operation a config asks for (`trainer.kernel`, `optim.kernel`); `kernel/choice.py` obeys."""

from __future__ import annotations

import os
from enum import Enum


class Kernel(Enum):
    """Implementations of the operations that have several."""

    torch = "PyTorch's own operations"
    triton = "kernels in Triton, of all parts that have one"
    compile = "torch.compile of the plain operations, each by itself: norms, rotary positions, gated units"
    auto = "Triton for what is bound by memory where tensors lie on a GPU and triton is installed, PyTorch elsewhere"


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: slow, for tests. Read once, when triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
