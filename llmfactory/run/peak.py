"""The matrix-product peak of this very machine, measured: what model FLOPs utilization is a share of.

A vendor's figure says little of a laptop that shares its cores. A square product of a size that fills the caches but takes
milliseconds is repeated, in the dtype and with the threads of the run; the fastest repetition counts.
"""

from __future__ import annotations

import time

import torch

SECONDS = 0.8
"""Time to spend, about; other programs slow some of the repetitions, hardly all."""


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second (multiplications and additions) of one process."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device).to(dtype)

    def once() -> float:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode():
        end = time.perf_counter() + SECONDS
        best = once()
        while time.perf_counter() < end:
            best = min(best, once())
    return 2 * n**3 / best
