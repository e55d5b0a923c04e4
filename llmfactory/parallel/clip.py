"""The global gradient norm and clipping (Pascanu et al. 2013, section 3.2).

Works on each process's local pieces: squares are summed over the mesh axes along which a gradient is cut, and over no
other, so replicated gradients count once. Nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from llmfactory.parallel.weights import box, cut, local

EPSILON = 1e-6
"""Added to the norm that is divided by, as `torch.nn.utils.clip_grad_norm_` does."""


@torch.no_grad()
def global_norm(gradients: Iterable[Tensor], others: dist.ProcessGroup | None = None) -> Tensor:
    """The Euclidean norm of all gradients of all processes together; a scalar, the same everywhere.

    `others`: processes that have other parameters; none of their gradients may be given twice. None: all have the same.
    """
    by_axes: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for gradient in gradients:
        by_axes.setdefault(cut_along(gradient), []).append(local(gradient))
    squares = []
    for groups, pieces in by_axes.items():
        square = torch.stack(torch._foreach_norm(pieces)).square().sum()
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    total = torch.stack(squares).sum()
    if others is not None:
        dist.all_reduce(total, group=others)
    return total.sqrt()


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> Tensor:
    """[N], the Euclidean norm of each whole tensor, of which each process gives its piece; the same everywhere."""
    pieces = [local(tensor) for tensor in tensors]
    squares_N = torch.stack(torch._foreach_norm(pieces)).square()
    by_axes: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for number, tensor in enumerate(tensors):
        by_axes.setdefault(cut_along(tensor), []).append(number)
    for groups, numbers in by_axes.items():
        if groups:
            index = torch.tensor(numbers, device=squares_N.device)
            some = squares_N[index]
            for group in groups:
                dist.all_reduce(some, group=group)
            squares_N[index] = some
    return squares_N.sqrt()


@torch.no_grad()
def sums_along(values: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """Sums of `values`, numbers of this process's piece of `tensor`, along a dimension (from the end, negative); whole, without that
    dimension, and the same everywhere."""
    offsets, sizes = box(tensor)
    shape = list(tensor.shape)
    del shape[dim]
    whole = values.new_zeros(shape)
    cut(whole, (without(offsets, dim), without(sizes, dim))).copy_(values.sum(dim))
    for group in cut_along(tensor):
        dist.all_reduce(whole, group=group)
    return whole


def without(numbers: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """All but that of a dimension."""
    left = list(numbers)
    del left[dim]
    return tuple(left)


def cut_along(gradient: Tensor, dim: int | None = None) -> tuple[dist.ProcessGroup, ...]:
    """The process groups over which a gradient is cut into pieces; `dim`: over which along that dimension."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh = gradient.device_mesh
    return tuple(
        mesh.get_group(axis)
        for axis, placement in enumerate(gradient.placements)
        if isinstance(placement, (Shard, _StridedShard)) and mesh.size(axis) > 1 and dim in (None, placement.dim)
    )


def clip_factor(norm: Tensor, max_norm: float | Tensor | None) -> Tensor:
    """What gradients of that norm must be multiplied by so that it is at most `max_norm`; never above 1."""
    if max_norm is None:
        return torch.ones_like(norm)
    return (max_norm / (norm + EPSILON)).clamp(max=1.0)


@torch.no_grad()
def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all gradients by a scalar, in place."""
    if gradients:
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor)


@torch.no_grad()
def bound_(gradients: Sequence[Tensor], largest: float) -> None:
    """Set numbers beyond `largest`, either way, to it, in place."""
    if gradients:
        pieces = [local(gradient) for gradient in gradients]
        torch._foreach_clamp_max_(pieces, largest)
        torch._foreach_clamp_min_(pieces, -largest)
