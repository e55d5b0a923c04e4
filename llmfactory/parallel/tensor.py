"""Tensor parallelism: matrices cut over a group of processes as the parts that own them declare (Shoeybi et al. 2019).

A column-cut matrix gives each process some of the output features, heads or hidden units; a row-cut one takes them and gives
partial results, which are summed. Between them everything is local. What no part declares as cut is a copy in each process.

By the sum convention (`collectives.py`) that sum is the only communication of a layer, forward and backward: gradients of
copies are partial, and what FSDP reduces in the end is their sum. So norms, routers, key/value heads that several processes
share, or rotations between two matrices need no treatment of their own.

The module whose parameter is cut gets a class of its own, through which `module.weight` gives a forward the local piece as a
plain tensor; `named_parameters()` still gives the DTensor. A table along the vocabulary gives the whole, gathered, to whoever
asks, but looks its own rows up (`TokenTable.look_up`), and the loss of a language model may be computed from cut logits
(`vocabulary.py`).

With sequence parallelism (Korthikanti et al. 2022) what lies between such parts is cut along the row: a part that holds a
row-cut matrix gathers its input and keeps its share of the rows of the sum.

A part that adds up what others give (a mixture: its experts and a shared part) is summed once, as a whole, and gathers its input
once. Its router sees whole rows, so that all processes route them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Parameter, name_seed
from llmfactory.kernel.linear import Product
from llmfactory.model.embedding.table import TokenTable
from llmfactory.model.part import Part
from llmfactory.model.tower import Tower
from llmfactory.model.vision import VisionEncoder
from llmfactory.parallel.collectives import Group, gather, piece, scatter_total, total
from llmfactory.parallel.drawing import generator_states, restore_generators, seed_generators
from llmfactory.parallel.mesh import World
from llmfactory.parallel.vocabulary import cut_look_up, cut_losses, gathered_rows

ROW = 1
"""The dimension of a row of tokens in [B, T, D]."""

View = Callable[[Tensor], Tensor]
"""From the local piece of a parameter to what a forward is to see of it."""


def cut_tensors(model: nn.Module, world: World, *, sequence: bool, loss: bool) -> None:
    """Cut the parameters of `model` over the tensor-parallel group, in place. All processes must hold the same weights.

    `sequence`: cut what lies between along the row too. `loss`: compute a language model's loss from cut logits.
    Experts are left alone: `expert.py` deals them out.

    Raises:
        UserError: a parameter that cannot be cut evenly (a rule refuses that while composing; this names the parameter).
    """
    if "tp" not in world.groups:
        return
    inside = {id(part) for tower in towers(model) for part in tower.blocks.modules()} if sequence else set()
    sums = [part for part in model.modules() if isinstance(part, Part) and part.adds_up]
    partial_parts = {id(inner) for part in sums for inner in part.modules() if inner is not part}
    cutter = _Cutter(world)
    for name, part in model.named_modules():
        if isinstance(part, Part):
            cutter.cut(name, part, sequence=id(part) in inside, summed=id(part) not in partial_parts)
    if loss:
        cut_losses(model, world.groups["tp"])


class _Cutter:
    def __init__(self, world: World) -> None:
        assert world.dense is not None
        self.group, self.mesh = world.groups["tp"], world.dense["tp"]
        self.size, self.rank = self.group.size(), self.group.rank()

    def cut(self, name: str, part: Part, sequence: bool, summed: bool) -> None:
        """`summed`: the part sums its partial results; else a part around it does."""
        declared = {key: one for key, one in part.declare().items() if one.layout is not Layout.expert}
        for key, one in declared.items():
            path, _, attribute = key.rpartition(".")
            self._cut_parameter(f"{name}.{key}", part.get_submodule(path), attribute, one)
        # Other parts' row-cut parameters (of an adapter beside a linear map) give what is summed where that map's product is.
        rows = [key for key, one in declared.items() if one.layout is Layout.row and isinstance(_holder(part, key), nn.Linear)]
        for key in rows:
            linear = _holder(part, key)
            # Of several sums in one part, the first ones feed what follows in it; they stay whole.
            linear.__dict__["join"] = self._sum(scattered=sequence and len(rows) == 1) if summed else same
            linear.__class__ = type(type(linear).__name__, (_RowLinear, type(linear)), {})
            if not summed and linear.bias is not None:
                raise TypeError(f"{name}.{key}: its bias would be added once for each tensor-parallel process")
        if part.adds_up:
            self._surround(part, False, sequence, end=self._sum(scattered=sequence))
        elif rows and summed:
            heads = any(one.layout is Layout.column and one.unit > 1 for one in declared.values())
            cut = partial(piece, dim=ROW, group=self.group)
            self._surround(part, heads, sequence, end=cut if sequence and len(rows) > 1 else same)
        if isinstance(part, TokenTable) and part._parameters["weight"].placements == (Shard(0),):  # type: ignore[union-attr]
            part.look_up = partial(cut_look_up, part, self.group)  # type: ignore[method-assign]

    def _sum(self, scattered: bool) -> View:
        return partial(scatter_total, dim=ROW, group=self.group) if scattered else partial(total, group=self.group)

    def _cut_parameter(self, name: str, module: nn.Module, attribute: str, declared: Parameter) -> None:
        whole = module._parameters[attribute]
        assert whole is not None
        if isinstance(whole, DTensor):  # a module that stands at two places
            return
        placement, view = self._placed(name, whole, declared)
        keep_piece(module, attribute, self.mesh, [placement], view)

    def _placed(self, name: str, whole: Tensor, declared: Parameter) -> tuple[Placement, View]:
        if declared.layout is Layout.replicated:
            return Replicate(), same
        if declared.layout is Layout.vocab:
            if whole.shape[0] % self.size:
                return Replicate(), same
            return Shard(0), partial(gathered_rows, group=self.group)
        dim = 1 if declared.layout is Layout.row else 0
        units = whole.shape[dim] // (declared.unit if dim == 0 else 1)
        if units % self.size == 0:
            return Shard(dim), same
        if declared.shared and self.size % units == 0:
            return Replicate(), partial(_unit, start=self.rank * units // self.size * declared.unit, size=declared.unit)
        raise UserError(f"{name} has {units} features or heads, which {self.size} tensor-parallel processes cannot share evenly")

    def _surround(self, part: Part, heads: bool, sequence: bool, end: View) -> None:
        """What happens before and after a part whose matrices are cut; `end`: to its output."""
        restore: list[list[Tensor]] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if sequence:
                args = (gather(args[0], ROW, self.group), *args[1:])
            if heads:
                args, kwargs = own_heads(args, kwargs, self.group)
                if module.training and getattr(module, "dropout", None) and not sequence:
                    # Outside, all draw the same numbers; each has its own heads here, so its own numbers.
                    seed = int(torch.randint(2**62, ()).item())
                    restore.append(generator_states())
                    seed_generators(name_seed(seed, str(self.rank)), args[0].device)
            return args, kwargs

        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if restore:
                restore_generators(restore.pop())
            return end(output)

        part.register_forward_pre_hook(before, with_kwargs=True)
        part.register_forward_hook(after, prepend=True)  # what others hang on the part sees its whole output


def own_heads(args: tuple[Any, ...], kwargs: dict[str, Any], group: Group) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a part whose heads are dealt to `group`: score biases are those of this process's heads."""

    def own(value: Any) -> Any:
        if not isinstance(value, Context) or value.bias is None:
            return value
        return value.with_(bias=piece(value.bias, 1, group))

    return tuple(own(value) for value in args), {key: own(value) for key, value in kwargs.items()}


def towers(model: nn.Module) -> list[Tower]:
    """The stacks of blocks over the tokens of rows; those over pictures are not cut along them."""
    found = [module for module in model.modules() if isinstance(module, Tower)]
    apart = {id(inner) for module in model.modules() if isinstance(module, VisionEncoder) for inner in module.modules()}
    return [tower for tower in found if id(tower) not in apart]


def cut_rows(world: World) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What sequence parallelism does where a stack of blocks begins and where it ends: take a piece of the row, gather them."""
    group = world.groups["tp"]

    def cut(x_BTD: Tensor) -> Tensor:
        if x_BTD.shape[ROW] % group.size():
            raise UserError(
                f"rows of {x_BTD.shape[ROW]} cannot be cut into {group.size()} equal pieces: "
                f"use parallel.sequence_parallel=false or another data.seq_len"
            )
        return piece(x_BTD, ROW, group)

    return cut, partial(gather, dim=ROW, group=group)


# ---- what a forward sees of a parameter


def same(local: Tensor) -> Tensor:
    """The piece as it is."""
    return local


def _unit(local: Tensor, start: int, size: int) -> Tensor:
    return local.narrow(0, start, size)


class Pieces(nn.Module):
    """A module whose parameters a forward sees as local pieces."""

    _views: dict[str, tuple[View, int]]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        view, axes = self.__dict__["_views"].get(name, (None, 0))
        if view is None or not isinstance(value, DTensor) or value.device_mesh.ndim != axes:
            return value  # of a parameter that FSDP has cut and not gathered there is nothing to see
        gradients = [Partial() if isinstance(one, Replicate) else one for one in value.placements]
        return view(value.to_local(grad_placements=gradients))


def _holder(part: nn.Module, key: str) -> nn.Module:
    """The module whose own parameter a part declares under this name."""
    return part.get_submodule(key.rpartition(".")[0])


class _RowLinear(Pieces, Product):
    """A linear map whose input features are cut: partial results are summed, the bias is added once."""

    join: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        y, offset = self.join(self.product(x)), self.offset()
        return y if offset is None else y + offset.to(y.dtype)


def keep_piece(module: nn.Module, attribute: str, mesh: DeviceMesh, placements: Sequence[Placement], view: View) -> None:
    """Replace a whole parameter by a DTensor over `mesh` that holds this process's piece; `module.<attribute>` is then what `view`
    makes of that piece."""
    whole = module._parameters[attribute]
    assert whole is not None
    local = whole.detach()
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            local = local.chunk(mesh.size(axis), placement.dim)[mesh.get_local_rank(axis)]
    local = local.clone(memory_format=torch.contiguous_format)  # so that the whole can be freed
    cut = DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
    module._parameters[attribute] = nn.Parameter(cut, requires_grad=whole.requires_grad)
    kind = type(module)
    if not issubclass(kind, Pieces):
        module.__class__ = type(kind.__name__, (Pieces, kind), {})
    module.__dict__.setdefault("_views", {})[attribute] = view, mesh.ndim
