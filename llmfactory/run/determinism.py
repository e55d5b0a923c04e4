"""Settings that torch keeps for the whole process, set for one run and put back after it.

Several runs may follow each other in a process (a sweep), and none may inherit another's settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic as memory

from llmfactory.run.spec import Trainer


@contextmanager
def settings(trainer: Trainer, kind: str) -> Iterator[None]:
    """Threads, deterministic algorithms and random number generators of one run on that kind of device."""
    deterministic = kind == "cpu" if trainer.deterministic is None else trainer.deterministic
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if kind == "cuda" else []):
        try:
            if trainer.threads is not None:
                torch.set_num_threads(trainer.threads)
            if deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
                torch.use_deterministic_algorithms(True)
                # Filling every new tensor with NaN is for finding bugs and costs a pass over memory.
                memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = benchmark
