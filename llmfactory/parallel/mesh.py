"""The processes of a job and how they are arranged.

Each process learns its place from the environment variables that torch's launchers set (RANK, WORLD_SIZE, LOCAL_RANK).
One process needs no process group and gets none. Several get one that carries tensors of both kinds where there are GPUs:
NCCL for GPU tensors, gloo for the few numbers that are known on the CPU and must not wait for a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmfactory.core.errors import UserError
from llmfactory.parallel.spec import Backend, Mesh
from llmfactory.run.spec import Device


@dataclass(frozen=True, slots=True)
class World:
    """This process among all processes of the job."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    mesh: DeviceMesh | None = None
    """Axes `replicate` and `shard`; None for a single process."""

    @property
    def data_rank(self) -> int:
        """Which share of a batch this process takes."""
        return self.rank

    @property
    def data_size(self) -> int:
        """Into how many shares a batch is cut."""
        return self.size

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64, on the CPU."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on its device."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum_numbers([0.0])

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every process."""
        return self.gather(value)[0]

    def once(self, action: Callable[[], None]) -> None:
        """Do something on rank 0 while the others wait; what it raises is raised on all."""
        error: Exception | None = None
        if self.rank == 0:
            try:
                action()
            except Exception as caught:
                error = caught
        error = self.broadcast(error)
        if error is not None:
            raise error


def device_type(device: Device) -> str:
    """`cpu` or `cuda`."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but torch sees no GPU; use trainer.device=auto")
    return "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"


@contextmanager
def open_world(spec: Mesh, device_type: str) -> Iterator[World]:
    """Join the other processes of the job, if there are any, and leave them at the end.

    A process group that exists already (a test's) is used and left alone.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    degrees = spec.degrees_for(size)
    if math.prod(degrees.values()) != size:
        shape = " x ".join(f"{name}={degree}" for name, degree in degrees.items())
        raise UserError(f"the parallel layout {shape} needs {math.prod(degrees.values())} processes, but {size} were started")
    device = torch.device(device_type, local_rank) if device_type != "cpu" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device)
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group(_backends(spec.backend, device.type), timeout=timedelta(seconds=spec.timeout_s))
    try:
        mesh = init_device_mesh(device.type, (degrees["dp_replicate"], 1), mesh_dim_names=("replicate", "shard"))
        yield World(device, rank, size, local_rank, local_size, mesh)
    finally:
        if mine:
            dist.destroy_process_group()


def _backends(backend: Backend, device_type: str) -> str:
    """What `init_process_group` is asked for."""
    if device_type == "cpu":
        if backend is Backend.nccl:
            raise UserError("parallel.backend=nccl needs GPUs, but the job runs on the CPU; use parallel.backend=gloo")
        return "gloo"
    return "gloo" if backend is Backend.gloo else "cpu:gloo,cuda:nccl"
