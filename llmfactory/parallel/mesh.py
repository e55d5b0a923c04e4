"""The processes of a job and how they are arranged.

Each process learns its place from the environment variables that torch's launchers set (RANK, WORLD_SIZE, LOCAL_RANK).
One process needs no process group and gets none. Several get one that carries tensors of both kinds where there are GPUs:
NCCL for GPU tensors, gloo for the few numbers that are known on the CPU and must not wait for a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmfactory.core.errors import UserError
from llmfactory.parallel.spec import Backend, Mesh, TensorForm
from llmfactory.run.spec import Device

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Of the mesh, neighbours last: tensor-parallel processes talk most, pipeline stages least."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all processes of the job."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    degrees: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((*AXES, "ep"), 1))
    """Size of each axis, and of `ep`."""
    dense: DeviceMesh | None = None
    """Axes `pp`, `copies`, `shards`, `tp` (or `tp_rows`, `tp_columns`): how parameters lie. None: a single process."""
    sparse: DeviceMesh | None = None
    """Axes `pp`, `copies`, `shards`, `ep`, `tp`: how the parameters of experts lie. None: they are dealt to nobody."""
    groups: Mapping[str, dist.ProcessGroup] = field(default_factory=dict)
    """Of `pp`, `data`, `cp`, `tp`, `ep`: this process's neighbours along an axis; only of axes longer than 1."""
    everyone: dist.ProcessGroup | None = None
    """All processes; None: torch's default group."""

    def place(self, axis: str) -> int:
        """Where this process stands on an axis."""
        if axis == "ep":
            return self.groups["ep"].rank() if "ep" in self.groups else 0
        inner = math.prod(self.degrees[name] for name in AXES[AXES.index(axis) + 1 :])
        return self.rank // inner % self.degrees[axis]

    @property
    def data_rank(self) -> int:
        """Which share of a step's rows this process takes; tensor, context and pipeline neighbours take the same."""
        return self.place("dp_replicate") * self.degrees["dp_shard"] + self.place("dp_shard")

    @property
    def data_size(self) -> int:
        """Into how many shares the rows of a step are dealt."""
        return self.degrees["dp_replicate"] * self.degrees["dp_shard"]

    @property
    def counts(self) -> bool:
        """Whether what this process counts in its rows is to be counted: of those with the same rows, one does."""
        return self.place("pp") == self.place("cp") == self.place("tp") == 0

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64, on the CPU."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.everyone)
        return tensor.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on its device."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.everyone)
        return total

    def first_of(self, tensor: Tensor) -> Tensor:
        """Rank 0's values of a tensor, on every process, on its device."""
        if self.size == 1:
            return tensor
        values = tensor.clone()
        dist.broadcast(values, 0, group=self.everyone)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum_numbers([0.0])

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.everyone)
        return found

    def apart(self, timeout_s: float) -> World:
        """The same processes with a group of their own on the CPU, so that another thread may talk; called by all."""
        if self.size == 1:
            return self
        return replace(self, everyone=dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))

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
        yield World(
            device, rank, size, local_rank, local_size, **_arrange(device.type, {**degrees, "ep": spec.ep}, spec.tensor_form)
        )
    finally:
        if mine:
            dist.destroy_process_group()


def _arrange(device_type: str, degrees: dict[str, int], form: TensorForm) -> dict[str, Any]:
    """The meshes and groups of `World`. Context-parallel processes hold the same weights: they share them where weights are
    shared at all, else each has a copy."""
    pp, tp, ep = degrees["pp"], degrees["tp"], degrees["ep"]
    copies, shards = degrees["dp_replicate"], degrees["dp_shard"]
    whole = init_device_mesh(device_type, (math.prod(degrees[axis] for axis in AXES),), mesh_dim_names=("world",))

    def arranged(*axes: tuple[str, int]) -> DeviceMesh:
        return whole._unflatten(0, tuple(size for _, size in axes), tuple(name for name, _ in axes))

    rows = arranged(("pp", pp), ("data", copies * shards), ("cp", degrees["cp"]), ("tp", tp))
    copies, shards = (copies, shards * degrees["cp"]) if shards > 1 else (copies * degrees["cp"], 1)
    side = math.isqrt(tp)
    tensor = [("tp_rows", side), ("tp_columns", side)] if form is TensorForm.summa else [("tp", tp)]
    dense = arranged(("pp", pp), ("copies", copies), ("shards", shards), *tensor)
    meshes = {axis: rows[axis] for axis in ("pp", "data", "cp", "tp")} | {axis: dense[axis] for axis, _ in tensor}
    sparse = None
    if ep > 1:
        ranks = shards if shards > 1 else copies
        if ranks % ep:
            raise UserError(
                f"parallel.ep={ep} does not divide the {ranks} data- and context-parallel processes that experts go to"
            )
        copies, shards = (copies, shards // ep) if shards > 1 else (copies // ep, 1)
        sparse = arranged(("pp", pp), ("copies", copies), ("shards", shards), ("ep", ep), ("tp", tp))
        meshes["ep"] = sparse["ep"]
    groups = {axis: mesh.get_group() for axis, mesh in meshes.items() if mesh.size() > 1}
    return {"degrees": degrees, "dense": dense, "sparse": sparse, "groups": groups}


def _backends(backend: Backend, device_type: str) -> str:
    """What `init_process_group` is asked for."""
    if device_type == "cpu":
        if backend is Backend.nccl:
            raise UserError("parallel.backend=nccl needs GPUs, but the job runs on the CPU; use parallel.backend=gloo")
        return "gloo"
    return "gloo" if backend is Backend.gloo else "cpu:gloo,cuda:nccl"
