"""Collective operations as the linear maps that they are: the backward pass of each is its transpose, no more and no less.

| forward | backward |
|---|---|
| sum over the group | sum over the group |
| gather along a dimension | sum, each keeps its piece |
| sum, each keeps its piece | gather |
| exchange pieces | exchange them back |
| send round the ring | send back |

With them the loss of a step is the sum of what all processes back-propagate, and the gradient of anything that several
processes hold a copy of is the sum of the gradients that they find. Nothing is averaged and nothing is counted twice, so no
part of a model needs to know which of its tensors are copies. (Cutting a copy is `Tensor.chunk`; its transpose, zeros around
the piece, autograd knows.)

All pieces have the same size, except those of `exchange_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup

# torch 2.13 has other names for these two and warns of the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def total(x: Tensor, group: Group) -> Tensor:
    """The sum over the group, on every process."""
    return _Total.apply(x, group)  # type: ignore[no-any-return,no-untyped-call]


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """All processes' pieces side by side along `dim`, in order of rank, on every process."""
    return _Gather.apply(x, dim % x.dim(), group)  # type: ignore[no-any-return,no-untyped-call]


def scatter_total(x: Tensor, dim: int, group: Group) -> Tensor:
    """This process's piece along `dim` of the sum over the group."""
    return _ScatterTotal.apply(x, dim % x.dim(), group)  # type: ignore[no-any-return,no-untyped-call]


def exchange(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    """Cut along one dimension, give each process its piece, join what comes along another: an all-to-all."""
    return _Exchange.apply(x, cut % x.dim(), join % x.dim(), group)  # type: ignore[no-any-return,no-untyped-call]


def exchange_rows(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """Rows of the first dimension, `sent[r]` of them to rank r and `received[r]` from it, in order of rank."""
    return _ExchangeRows.apply(x, list(sent), list(received), group)  # type: ignore[no-any-return,no-untyped-call]


def shift(x: Tensor, group: Group) -> Tensor:
    """What the rank before this one holds; the first gets the last one's."""
    return _Shift.apply(x, group)  # type: ignore[no-any-return,no-untyped-call]


def piece(x: Tensor, dim: int, group: Group) -> Tensor:
    """This process's piece of what all hold a copy of."""
    return x.chunk(group.size(), dim)[group.rank()]


# ---- without gradients


def total_(x: Tensor, group: Group) -> Tensor:
    """The sum, in place."""
    dist.all_reduce(x, group=group)
    return x


def gathered(x: Tensor, dim: int, group: Group) -> Tensor:
    """`gather` of plain data."""
    front = x.movedim(dim, 0).contiguous()
    out = front.new_empty((front.shape[0] * group.size(), *front.shape[1:]))
    _all_gather(out, front, group=group)
    return out.movedim(0, dim)


def scattered_total(x: Tensor, dim: int, group: Group) -> Tensor:
    """`scatter_total` of plain data."""
    front = x.movedim(dim, 0).contiguous()
    if front.shape[0] % group.size():
        raise ValueError(f"{front.shape[0]} along dimension {dim} cannot be cut into {group.size()} equal pieces")
    out = front.new_empty((front.shape[0] // group.size(), *front.shape[1:]))
    _reduce_scatter(out, front, group=group)
    return out.movedim(0, dim)


def exchanged(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    """`exchange` of plain data."""
    pieces = torch.stack([one.contiguous() for one in x.chunk(group.size(), cut)])
    if pieces.shape[0] != group.size():
        raise ValueError(f"{x.shape[cut]} along dimension {cut} cannot be cut into {group.size()} equal pieces")
    out = torch.empty_like(pieces)
    dist.all_to_all_single(out, pieces, group=group)
    return torch.cat(out.unbind(), join)


def shifted(x: Tensor, group: Group, by: int = 1) -> Tensor:
    """What the rank `by` places before this one holds."""
    return shift_started(x, group, by)()


def shift_started(x: Tensor, group: Group, by: int = 1) -> Callable[[], Tensor]:
    """The same on its way: what is returned waits for it. `x` must not change before that."""
    size, rank = group.size(), group.rank()
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    to, source = (dist.get_global_rank(group, (rank + way) % size) for way in (by, -by))
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, x, to, group), dist.P2POp(dist.irecv, out, source, group)])

    def arrived(sent: Tensor = x) -> Tensor:  # which lives as long as this does
        for work in works:
            work.wait()
        return out

    return arrived


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return total_(x.contiguous().clone(), group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total_(grad.contiguous().clone(), ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return gathered(x, dim, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return scattered_total(grad, ctx.dim, ctx.group), None, None


class _ScatterTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return scattered_total(x, dim, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return gathered(grad, ctx.dim, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Tensor:
        ctx.cut, ctx.join, ctx.group = cut, join, group
        return exchanged(x, cut, join, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchanged(grad, ctx.join, ctx.cut, ctx.group), None, None, None


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _rows(x, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _rows(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _rows(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = x.new_empty((sum(received), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return shifted(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return shifted(grad, ctx.group, by=-1), None
