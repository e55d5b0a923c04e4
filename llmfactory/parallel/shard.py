"""Data parallelism on FSDP2: every parameter a DTensor, copied over one axis of the mesh and cut over another.

Copies alone (shards = 1) are not DistributedDataParallel, so that all layouts go one way through clipping, the optimizer and
checkpoints. Gradients are summed, never averaged: each process back-propagates its share of the loss (`collectives.py`).

What is cut over the shards (Rajbhandari et al. 2020): the optimizer's state in any case; gradients, if they are reduced after
every micro-batch; weights, if they are given back after each use. So the three stages of ZeRO differ in when FSDP2 gathers
and reduces:

| | weights are gathered | gradients are reduced |
|---|---|---|
| optimizer | once a step | once a step |
| gradients | once a step | each micro-batch |
| parameters | each forward and each backward | each micro-batch |

Copies are summed once a step in each case. FSDP2 hands out whole weights only while the root's forward runs, so the root must be
a module whose forward runs model, head and loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from llmfactory.parallel.expert import experts_of, placement
from llmfactory.parallel.spec import Offload, Zero


def shard(
    root: nn.Module,
    mesh: DeviceMesh,
    zero: Zero = Zero.optimizer,
    *,
    experts: DeviceMesh | None = None,
    offload: Offload = Offload.none,
    gradients: torch.dtype | None = None,
) -> None:
    """Make `root` data parallel over the mesh (copies, shards), in place. All processes must hold the same weights.

    `experts`: the mesh (copies, shards) of experts that are dealt out, which have fewer of both; None: they are not.
    `offload`: whether weights, gradients and the optimizer's state stay with the host. `gradients`: the format in which they are added
    up and summed (`add_gradients_in`); None: that of the weights.
    """
    again = zero is Zero.parameters and mesh.size(1) > 1
    pinned = mesh.device_type != "cpu" and offload is Offload.cpu  # what is in files cannot be
    policy = OffloadPolicy() if offload is Offload.none else CPUOffloadPolicy(pin_memory=pinned)
    sums = MixedPrecisionPolicy(reduce_dtype=gradients)
    if experts is not None:
        cut = partial(placement, shards=experts.size(1))
        for _, stack in experts_of(root):
            fully_shard(
                stack, mesh=experts, reshard_after_forward=again, shard_placement_fn=cut, offload_policy=policy, mp_policy=sums
            )
    for unit in units(root):
        fully_shard(unit, mesh=mesh, reshard_after_forward=again, offload_policy=policy, mp_policy=sums)
    fully_shard(root, mesh=mesh, reshard_after_forward=None if again else False, offload_policy=policy, mp_policy=sums)
    for module in sharded_modules(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it adds


def add_gradients_in(root: nn.Module, dtype: torch.dtype) -> None:
    """Let `.grad` of the parameters of `root` be in a wider format than theirs, for all that is added up in it. After the parameters
    have been given memory.

    FSDP2 sums in the format of its policy, and would round what comes out to that of the weights before the optimizer sees it.
    """
    for parameter in root.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = dtype
    for module in sharded_modules(root):
        for group in fully_shard.state(module)._fsdp_param_groups:  # type: ignore[attr-defined]
            group._init_mp_dtypes = partial(_formats_of, group, group._init_mp_dtypes, dtype)


def _formats_of(group: Any, plain: Callable[[], None], dtype: torch.dtype) -> None:
    plain()
    group._orig_dtype = dtype


def units(root: nn.Module) -> Iterator[nn.Module]:
    """Modules whose gradients travel together while the backward pass goes on: the members of lists, that is, the blocks.

    The rest (embedding, last norm, head, the linear maps of a connector) stays with the root: tied weights are in one unit, and
    FSDP2 sees no unit whose output is a view (that of a linear map is one), on which it could lose its hook.
    """
    for module in root.modules():
        if isinstance(module, nn.ModuleList):
            yield from (member for member in module if next(member.children(), None) is not None)


def sharded_modules(root: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 manages; none in a single process."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def next_micro_batch(root: nn.Module, last: bool, zero: Zero = Zero.optimizer) -> None:
    """Say before a micro-batch whether it is the step's last one: when gradients are reduced and weights are given back."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last or zero is not Zero.optimizer)
        root.set_requires_all_reduce(last)
        root.set_reshard_after_backward(last or zero is Zero.parameters)
        root.set_is_last_backward(last)


def reshard(root: nn.Module) -> None:
    """Give back the whole weights of the last forward, so that `root.parameters()` are what the optimizer trains."""
    for module in sharded_modules(root):
        module.reshard()
