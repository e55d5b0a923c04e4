"""Tensor parallelism in two dimensions (van de Geijn and Watts 1997; Xu et al. 2021, Optimus, section 3).

The tensor-parallel processes stand on a square grid of q x q. Everything between embedding and head is cut along both sides of
it: the process at (i, j) holds the i-th part of the rows of a batch, and of each vector the j-th part of its features; of a
matrix [out, in] the outputs j and the inputs i. A product Y = X W' goes in q rounds: in round k the processes of a grid row get
X(i, k) from the one at column k, those of a grid column W(j, k) from the one at row k, and each adds a product of pieces to its own
piece of Y. Nothing is held twice, neither matrices nor activations, which cutting along one dimension cannot do without
gathering; the price is that matrices travel as well. (`benchmarks/communication.py` compares the two.)

Norms sum their moments over a grid row. Heads are features, so attention is local. The vocabulary is cut along the columns of the
grid and the width of its vectors along the rows; embedding and head gather the width and go on as `vocabulary.py` has it.

Legend: q the side of the grid, N rows of a batch times tokens, I and O widths.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.norm.layer_norm import LayerNormalization
from llmfactory.model.norm.rms_norm import RootMeanSquareNorm
from llmfactory.model.part import Part
from llmfactory.parallel.collectives import Group, gather, piece, total
from llmfactory.parallel.mesh import World
from llmfactory.parallel.tensor import Pieces, View, keep_piece, own_heads, same, towers
from llmfactory.parallel.vocabulary import cut_look_up, cut_losses, gathered_rows

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

FEATURES = -1


def cut_on_grid(model: nn.Module, world: World, *, loss: bool) -> None:
    """Cut the parameters of `model` over the grid, in place. All processes must hold the same weights.

    `loss`: compute a language model's loss from logits that are cut along the columns of the grid.

    Raises:
        UserError: a parameter that cannot be cut evenly (a rule refuses that while composing; this names the parameter).
    """
    grid = _Grid(world)
    for name, part in model.named_modules():
        if isinstance(part, Part):
            grid.cut(name, part)
    for tower in towers(model):
        for norm in [tower.norm, *(child for block in tower.blocks for child in block.children())]:
            if isinstance(norm, (LayerNormalization, RootMeanSquareNorm)):
                grid.spread_norm(norm)
        tower.cut, tower.join = (
            partial(piece, dim=FEATURES, group=grid.columns),
            partial(gather, dim=FEATURES, group=grid.columns),
        )
    if loss:
        cut_losses(model, grid.columns)


def own_rows_of(batch: Batch, world: World) -> Batch:
    """This grid row's part of the rows of a batch; where they cannot be dealt evenly, rows that count nothing are added."""
    group = world.groups["tp_rows"]
    found = {}
    for name, field in batch.items():
        missing = -field.shape[0] % group.size()
        if missing:
            more = field[:1].expand(missing, *field.shape[1:]).clone()
            field = torch.cat((field, more.fill_(IGNORE) if name.endswith("labels") else more))
        found[name] = field.chunk(group.size())[group.rank()]
    return found


class _Grid:
    def __init__(self, world: World) -> None:
        assert world.dense is not None
        self.mesh = world.dense["tp_rows", "tp_columns"]
        self.rows, self.columns = world.groups["tp_rows"], world.groups["tp_columns"]
        self.side = self.rows.size()

    def cut(self, name: str, part: Part) -> None:
        for key, declared in part.declare().items():
            path, _, attribute = key.rpartition(".")
            module = part.get_submodule(path)
            whole = module._parameters[attribute]
            assert whole is not None
            if not isinstance(whole, DTensor):
                self._cut_parameter(f"{name}.{key}", module, attribute, whole, declared)
        if any(declared.layout is Layout.row for declared in part.declare().values()):
            part.register_forward_pre_hook(self._own_heads, with_kwargs=True)
        if isinstance(part, TokenTable):
            part.look_up = partial(cut_look_up, part, self.columns)  # type: ignore[method-assign]

    def _cut_parameter(self, name: str, module: nn.Module, attribute: str, whole: Tensor, declared: Parameter) -> None:
        placements, view = self._placed(whole, module, declared)
        for axis, placement in enumerate(placements):
            units = whole.shape[placement.dim] // declared.unit if isinstance(placement, Shard) and axis else 0
            if isinstance(placement, Shard) and (whole.shape[placement.dim] % self.side or units % self.side):
                raise UserError(f"{name} {list(whole.shape)} cannot be cut evenly on a grid of {self.side} x {self.side}")
        keep_piece(module, attribute, self.mesh, placements, view)
        if isinstance(module, nn.Linear) and declared.layout in (Layout.column, Layout.row):
            module.__class__ = _SummaLinear
            module.__dict__.update(rows=self.rows, columns=self.columns)

    def _placed(self, whole: Tensor, module: nn.Module, declared: Parameter) -> tuple[tuple[Placement, Placement], View]:
        """Along the rows and along the columns of the grid."""
        if declared.layout is Layout.vocab:
            width: Placement = Shard(1) if whole.dim() > 1 else Replicate()
            return (width, Shard(0)), partial(self._whole_width, cut=whole.dim() > 1)
        linear = isinstance(module, nn.Linear) and declared.layout in (Layout.column, Layout.row)
        if linear and whole.dim() > 1:
            return (Shard(1), Shard(0)), same
        if declared.layout is Layout.column:  # what goes with the outputs: a bias, a number for each head
            return (Replicate(), Shard(0)), same
        return (Replicate(), Replicate()), same

    def _whole_width(self, local: Tensor, cut: bool) -> Tensor:
        return gathered_rows(gather(local, 1, self.rows) if cut else local, self.columns)

    def spread_norm(self, norm: LayerNormalization | RootMeanSquareNorm) -> None:
        """Let a norm see a part of the features."""
        norm.forward = partial(_spread_norm, norm, self.columns)  # type: ignore[method-assign]

    def _own_heads(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return own_heads(args, kwargs, self.columns)


def _spread_norm(norm: LayerNormalization | RootMeanSquareNorm, columns: Group, x: Tensor) -> Tensor:
    """The norm of vectors of which each process of a grid row holds a part."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, width = x.to(wide), x.shape[FEATURES] * columns.size()
    if isinstance(norm, LayerNormalization):
        x_wide = x_wide - total(x_wide.sum(FEATURES, keepdim=True), columns) / width
    square = total(x_wide.square().sum(FEATURES, keepdim=True), columns) / width
    y = x_wide * torch.rsqrt(square + norm.eps)
    if isinstance(norm, RootMeanSquareNorm):
        return (y * (piece(norm.weight, 0, columns).to(wide) + norm.offset)).to(x.dtype)
    if norm.weight is not None:
        y = y * piece(norm.weight, 0, columns).to(wide)
    return (y if norm.bias is None else y + piece(norm.bias, 0, columns).to(wide)).to(x.dtype)


class _SummaLinear(Pieces, nn.Linear):
    """[..., inputs j] -> [..., outputs j]."""

    rows: Group
    columns: Group

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        y: Tensor = _Summa.apply(x.flatten(0, -2), weight, self.rows, self.columns)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self.bias
        if bias is not None:
            # A row-cut map's bias is a copy everywhere; of it, as of a column-cut one's, this process's outputs count.
            y = y + (bias if bias.shape[0] == y.shape[1] else piece(bias, 0, self.columns)).to(y.dtype)
        return y.view(*x.shape[:-1], -1)


def _from(x: Tensor, sender: int, group: Group) -> Tensor:
    """What the process of that number in the group holds."""
    x = x.contiguous() if group.rank() == sender else torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.broadcast(x, group=group, group_src=sender)
    return x


def _to(x: Tensor, receiver: int, group: Group) -> Tensor:
    """The sum over the group, on the process of that number."""
    dist.reduce(x, group=group, group_dst=receiver)
    return x


class _Summa(torch.autograd.Function):
    """Y = X W' (Xu et al. 2021, algorithms 1 to 3)."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, rows: Group, columns: Group) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.rows, ctx.columns = rows, columns
        y_NO = x_NI.new_zeros(x_NI.shape[0], weight_OI.shape[0])
        for k in range(rows.size()):
            y_NO += F.linear(_from(x_NI, k, columns), _from(weight_OI, k, rows))
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_x = grad_weight = None
        for k in range(ctx.rows.size()):
            if ctx.needs_input_grad[0]:
                part = _to(grad_NO @ _from(weight_OI, k, ctx.rows), k, ctx.columns)
                grad_x = part if k == ctx.columns.rank() else grad_x
            if ctx.needs_input_grad[1]:
                part = _to(grad_NO.t() @ _from(x_NI, k, ctx.columns), k, ctx.rows)
                grad_weight = part if k == ctx.rows.rank() else grad_weight
        return grad_x, grad_weight, None, None
