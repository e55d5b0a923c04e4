"""Whole tensors and the pieces of them that processes hold, whatever the layout.

A piece is a box of the whole: DTensors over several axes of a mesh, cut evenly or not, some along the same dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from llmfactory.parallel.mesh import World

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets in the whole tensor, and sizes."""


def local(tensor: Tensor) -> Tensor:
    """This process's piece, detached; of a tensor that is not distributed, all of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, detached; of one that is distributed, which every process asks for at once, the pieces together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def box(tensor: Tensor) -> Box:
    """Where this process's piece lies in the whole."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim(), tuple(tensor.shape)
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offsets), tuple(sizes)


def cut(whole: Tensor, where: Box) -> Tensor:
    """The part of a whole tensor that lies in a box, as a view."""
    for dim, (offset, size) in enumerate(zip(*where, strict=True)):
        whole = whole.narrow(dim, min(offset, whole.shape[dim]), size)  # an empty piece may be said to lie behind the end
    return whole


def put(tensor: Tensor, whole: Tensor) -> None:
    """Fill this process's piece of `tensor` from the whole, in the tensor's own format."""
    local(tensor).copy_(cut(whole, box(tensor)))


def allocate(root: nn.Module, device: torch.device, memory: Callable[[Tensor], Tensor] | None = None) -> None:
    """Give the parameters of `root` that are on the meta device memory on `device`, in place: their pieces only, with undefined
    values. A parameter that stands at several places stays one. `memory` gives it, for a parameter; None: the device itself.

    Raises:
        TypeError: a buffer on the meta device, whose values nobody would compute again.
    """
    lost = [name for name, buffer in root.named_buffers() if buffer.is_meta]
    if lost:
        raise TypeError(f"the buffers {', '.join(lost)} were made on the meta device, so what they held is lost")
    memory = memory or partial(torch.empty_like, device=device)
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that a parameter stays the same object
    try:
        root._apply(lambda x: memory(x) if x.is_meta else x)  # type: ignore[no-untyped-call]
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)


@torch.no_grad()
def assemble(pieces: Mapping[str, Tensor], world: World, keep: Callable[[str, Tensor], None]) -> None:
    """Hand every whole tensor to `keep`, by name, one after the other; called by all processes, each with the pieces that it has.

    Each box is added into zeros by one of the processes that have it, as bytes, which keeps every bit. One whole tensor exists
    at a time. Names come in the order of the first process that has them.
    """
    have = world.gather({name: (tuple(piece.shape), piece.dtype, box(piece)) for name, piece in pieces.items()})
    owner: dict[tuple[str, Box], int] = {}
    wholes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for rank, named in enumerate(have):
        for name, (shape, dtype, where) in named.items():
            wholes.setdefault(name, (shape, dtype))
            owner.setdefault((name, where), rank)
    for name, (shape, dtype) in wholes.items():
        whole = torch.zeros(shape, dtype=dtype, device=world.device)
        if name in pieces and owner[name, where := box(pieces[name])] == world.rank:
            cut(whole, where).copy_(local(pieces[name]))
        if world.size > 1 and whole.numel():
            dist.all_reduce(whole.view(-1).view(torch.uint8))
        keep(name, whole)
