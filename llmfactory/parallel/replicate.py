"""Data parallelism: a copy of the model in every process, gradients summed.

It is FSDP2 on a mesh of (copies, shards = 1), not DistributedDataParallel, so that every parameter is a DTensor and all
layouts go one way through clipping, the optimizer and checkpoints. Gradients are summed, not averaged: each process
back-propagates its part of the loss already divided by the whole step's denominator.

FSDP2 hands out whole weights only while the root's forward runs, so the root must be a module whose forward runs model,
head and loss.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def replicate(root: nn.Module, mesh: DeviceMesh) -> None:
    """Make `root` data parallel, in place. All processes must hold the same weights."""
    for unit in units(root):
        fully_shard(unit, mesh=mesh, reshard_after_forward=False)
    fully_shard(root, mesh=mesh, reshard_after_forward=None)
    for module in sharded_modules(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it adds


def units(root: nn.Module) -> Iterator[nn.Module]:
    """Modules whose gradients travel together while the backward pass goes on: the members of lists, that is, the blocks.

    The rest (embedding, last norm, head) stays with the root, so that tied weights are in one unit.
    """
    for module in root.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


def sharded_modules(root: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 manages; none in a single process."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def sync_gradients(root: nn.Module, sync: bool) -> None:
    """Whether the next backward pass sums gradients over the processes: only the last micro-batch's should."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(sync)


def reshard(root: nn.Module) -> None:
    """Give back the whole weights of the last forward, so that `root.parameters()` are what the optimizer trains."""
    for module in sharded_modules(root):
        module.reshard()
