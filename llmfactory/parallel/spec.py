"""Catalogue of parallel layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least


class Backend(Enum):
    """Communication libraries of torch.distributed."""

    auto = "nccl where every process has a GPU, gloo otherwise"
    gloo = "CPU, and GPU tensors through the CPU"
    nccl = "NVIDIA GPUs"


@dataclass(kw_only=True, slots=True)
class ParallelSpec(Spec):
    """Base of the layouts."""

    def degrees_for(self, world: int) -> dict[str, int]:
        """Size of each axis of the device mesh when `world` processes run; their product is the world it needs."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of parallel")


@dataclass(kw_only=True, slots=True)
class Mesh(ParallelSpec):
    """Processes arranged on the axes of one device mesh; each preset is a choice of degrees."""

    dp_replicate: int | None = 1
    """Data-parallel copies of the whole model; None: one a process."""
    backend: Backend = Backend.auto
    """Communication library."""
    timeout_s: float = 600.0
    """Seconds after which a collective operation that waits for a lost process fails."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "dp_replicate")
        yield from above(self, 0.0, "timeout_s", repair=600)

    def degrees_for(self, world: int) -> dict[str, int]:
        return {"dp_replicate": world if self.dp_replicate is None else self.dp_replicate}
