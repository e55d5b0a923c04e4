"""Expert parallelism: the experts of a layer are dealt to a group of processes, and tokens travel to them (Lepikhin et al. 2021,
GShard, section 3.2; without its padding to a capacity: how many go where is counted first, Gale et al. 2023, MegaBlocks).

A layer's step sends each visit of a token to another expert's process and back, forward and backward: four exchanges of rows,
and one of counts. What a process does not own it does not hold, so its optimizer has less to keep.

Over a tensor-parallel group each expert's hidden units are cut: its two matrices then are a column and a row cut, and what it
gives is partial until the mixture's sum is summed over that group (`tensor.py`).

Shapes: N visits, E experts, n processes of the group, e experts of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout
from llmfactory.model.ffn.experts import Experts, Visit
from llmfactory.model.part import Part
from llmfactory.parallel.collectives import Group, exchange_rows
from llmfactory.parallel.mesh import World
from llmfactory.parallel.tensor import keep_piece, same


def deal_experts(model: nn.Module, world: World) -> None:
    """Deal the experts of `model` out, in place: each process keeps its own, and of these its share of the hidden units.

    All processes must hold the same weights. Experts become DTensors over (`ep`, `tp`).

    Raises:
        UserError: experts or hidden units that cannot be dealt evenly (a rule refuses that while composing).
    """
    if world.sparse is not None:
        mesh = world.sparse["ep", "tp"]
    elif "tp" in world.groups:
        assert world.dense is not None
        mesh = world.dense["tp"]
    else:
        return
    for name, experts in experts_of(model):
        for path, part in list(experts.named_modules()):  # and what stands beside their stacks
            for attribute, declared in part.declare().items() if isinstance(part, Part) else ():
                assert declared.layout is Layout.expert
                hidden = Replicate() if declared.hidden is None else Shard(declared.hidden)
                cuts: list[Placement] = [hidden] if mesh.ndim == 1 else [Shard(0), hidden]
                _cut(part, ".".join(filter(None, (name, path, attribute))), attribute, mesh, cuts)
        if "ep" in world.groups:
            experts.dispatch = dispatch_over(world.groups["ep"])


def experts_of(model: nn.Module) -> Iterator[tuple[str, Experts]]:
    """The stacks of experts in a model, by name: where they are dealt out, units of their own to FSDP."""
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            yield name, module


def placement(experts: Tensor, shards: int) -> Shard:
    """Along which dimension FSDP shall cut this process's [e, ., .] matrices further: whole experts if they come out even, then
    features; FSDP pads where experts are fewer than shares, and cuts no other dimension unevenly."""
    sizes = experts.to_local().shape if isinstance(experts, DTensor) else experts.shape
    return Shard(next((dim for dim, size in enumerate(sizes) if size % shards == 0), 0))


def dispatch_over(group: Group) -> Callable[[Tensor, Tensor, Visit], Tensor]:
    """`Experts.dispatch` where experts are dealt to `group`, the first ones to its first process."""

    def dispatch(x_ND: Tensor, ends_E: Tensor, visit: Visit) -> Tensor:
        if torch.is_autocast_enabled(x_ND.device.type):  # what will be multiplied in fewer bits travels in fewer bits
            x_ND = x_ND.to(torch.get_autocast_dtype(x_ND.device.type))
        going_ne = ends_E.diff(prepend=ends_E.new_zeros(1)).view(group.size(), -1)
        coming_ne = torch.empty_like(going_ne)
        dist.all_to_all_single(coming_ne, going_ne, group=group)
        sent, received = torch.stack((going_ne.sum(1), coming_ne.sum(1))).tolist()
        x_ND = exchange_rows(x_ND, sent, received, group)
        experts_e = torch.arange(coming_ne.shape[1], device=x_ND.device)
        expert_N = experts_e.repeat(group.size()).repeat_interleave(coming_ne.flatten(), output_size=sum(received))
        order_N = expert_N.argsort(stable=True)  # they come by process, then by expert
        y_ND = visit(x_ND.index_select(0, order_N), coming_ne.sum(0).cumsum(0).int())
        return exchange_rows(y_ND.index_select(0, order_N.argsort()), received, sent, group)

    return dispatch


def _cut(part: Part, name: str, attribute: str, mesh: DeviceMesh, cuts: Sequence[Placement]) -> None:
    whole = part._parameters[attribute]
    assert whole is not None
    if isinstance(whole, DTensor):  # a part that stands at two places
        return
    for axis, cut in enumerate(cuts):
        if isinstance(cut, Shard) and whole.shape[cut.dim] % mesh.size(axis):
            what = "experts" if cut.dim == 0 else "hidden units"
            raise UserError(f"{name} has {whole.shape[cut.dim]} {what}, which {mesh.size(axis)} processes cannot share evenly")
    keep_piece(part, attribute, mesh, cuts, same)
