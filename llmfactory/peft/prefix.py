"""Prefix tuning (Li and Liang 2021, sections 4.2 and 4.3): P keys and values before those of the text are trained in every layer.

They are trained themselves, or made of P trained vectors e by a network, whose first part all layers of a stack have in common:

    h = tanh(W e + b),  keys of layer i = K_i h + k_i,  values of layer i = V_i h + v_i

Keys are what attention multiplies by: behind norm and rotation, so that no position turns them. Positions of the text begin at P.
In a latent attention (MLA) they stand for what it keeps of a token, its latent vector and the rotated key.

A decoder has them, and where that is asked for an encoder too, and attention to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Normal, Parameter, Uniform
from llmfactory.model.attention.cross import CrossAttention
from llmfactory.model.attention.gqa import GroupedQueryAttention
from llmfactory.model.attention.mla import LatentAttention
from llmfactory.model.encoder_decoder import EncoderDecoderModel
from llmfactory.model.multimodal import MultimodalModel
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.tower import Tower
from llmfactory.peft.ahead import Ahead, AheadMask, Pair
from llmfactory.peft.part import ADAPTERS, Adapter, attach
from llmfactory.peft.prompt import arguments
from llmfactory.peft.prompt_spec import InLayersSpec
from llmfactory.peft.virtual import later

SHAPES = tuple[tuple[int, int], tuple[int, int]]
"""Heads and width of what an attention part keeps of a token."""


class PrefixNetwork(Adapter):
    """The part of the network that all layers of a stack have in common: `embedding` [P, width] -> [P, hidden]."""

    def __init__(self, name: str, count: int, width: int, hidden: int) -> None:
        super().__init__(name)
        self.embedding = nn.Parameter(torch.empty(count, width))
        self.up = nn.Linear(width, hidden)

    def declare(self) -> dict[str, Parameter]:
        bound = Uniform(self.up.in_features**-0.5)
        return {
            "embedding": Parameter(Normal(1.0)),
            "up.weight": Parameter(bound),
            "up.bias": Parameter(bound, decay=False),
        }

    def forward(self) -> Tensor:
        return self.up(self.embedding).tanh()  # type: ignore[no-any-return]


class LayerPrefix(Adapter):
    """Keys [G, P, D] and values [G, P, E] of one attention part."""

    def __init__(self, name: str, count: int, shared: bool) -> None:
        """`shared`: the part's heads are cut over a tensor-parallel group; else each process has all."""
        super().__init__(name)
        self.count, self.layout = count, Layout.column if shared else Layout.replicated


class OwnPrefix(LayerPrefix):
    """Trained as they are."""

    def __init__(self, name: str, count: int, shapes: SHAPES, shared: bool, std: float) -> None:
        super().__init__(name, count, shared)
        self.std = std
        self.keys, self.values = (nn.Parameter(torch.empty(heads, count, width)) for heads, width in shapes)

    def declare(self) -> dict[str, Parameter]:
        return dict.fromkeys(("keys", "values"), Parameter(Normal(self.std), self.layout, shared=True))

    def forward(self, hidden_PH: Tensor | None) -> Pair:
        return self.keys, self.values


class MadePrefix(LayerPrefix):
    """The layer's own part of the network."""

    def __init__(self, name: str, count: int, shapes: SHAPES, shared: bool, hidden: int) -> None:
        super().__init__(name, count, shared)
        self.widths = {"keys": shapes[0][1], "values": shapes[1][1]}
        self.keys, self.values = (nn.Linear(hidden, heads * width) for heads, width in shapes)

    def declare(self) -> dict[str, Parameter]:
        bound, found = Uniform(self.keys.in_features**-0.5), {}
        for name, width in self.widths.items():
            found[f"{name}.weight"] = Parameter(bound, self.layout, unit=width, shared=True)
            found[f"{name}.bias"] = Parameter(bound, self.layout, decay=False, unit=width, shared=True)
        return found

    def forward(self, hidden_PH: Tensor | None) -> Pair:
        assert hidden_PH is not None
        keys_PGD = self.keys(hidden_PH).unflatten(-1, (-1, self.widths["keys"]))
        values_PGE = self.values(hidden_PH).unflatten(-1, (-1, self.widths["values"]))
        return keys_PGD.transpose(0, 1), values_PGE.transpose(0, 1)


# ---- putting them in


def adapt(spec: InLayersSpec, model: Skeleton, name: str, hidden: int | None) -> None:
    first = not any(isinstance(module, LayerPrefix) for module in model.modules())
    for tower in _towers(model, spec.encoder):
        parts = [*_attentions(tower), *(_crosses(tower) if spec.cross else [])]
        if hidden is not None:
            heads, width = _kept(parts[0])[0][0]
            attach(tower, PrefixNetwork(name, spec.tokens, heads * width, hidden))
        for part in parts:
            shapes, shared = _kept(part)
            made = (
                OwnPrefix(name, spec.tokens, shapes, shared, part.std)
                if hidden is None
                else MadePrefix(name, spec.tokens, shapes, shared, hidden)
            )
            attach(part, made)
            if isinstance(part, CrossAttention) and len(part.get_submodule(ADAPTERS)._modules) == 1:
                part.register_forward_pre_hook(_of_call, with_kwargs=True)
                part.k.register_forward_hook(partial(_before_memory, part, 0))
                part.v.register_forward_hook(partial(_before_memory, part, 1))
    if first:
        model.register_forward_pre_hook(_enter, with_kwargs=True)
    model.preceding += spec.tokens


def _towers(model: nn.Module, encoder: bool = True) -> list[Tower]:
    """The stacks of blocks that read text."""
    if isinstance(model, MultimodalModel):
        return [model.decoder]
    if isinstance(model, EncoderDecoderModel):
        return [model.encoder, model.decoder] if encoder else [model.decoder]
    if isinstance(model, Tower):
        return [model]
    raise TypeError(f"{type(model).__name__} has no keys and values to put others before")


def _attentions(tower: Tower) -> list[Any]:
    return [block.attention for block in tower.blocks]


def _crosses(tower: Tower) -> list[CrossAttention]:
    """Attention to an encoder's output, where the stack has some."""
    found = (getattr(block, "cross", None) for block in tower.blocks)
    return [part for part in found if isinstance(part, CrossAttention)]


def _kept(part: nn.Module) -> tuple[SHAPES, bool]:
    """What an attention part keeps of a token, and whether a tensor-parallel group cuts it."""
    if isinstance(part, (GroupedQueryAttention, CrossAttention)):
        width = part.head_dim
        return ((part.k.out_features // width, width), (part.v.out_features // width, width)), True
    if isinstance(part, LatentAttention):
        return ((1, part.rank), (1, part.rotated)), False
    raise TypeError(f"{type(part).__name__} has no keys and values to put others before")


# ---- a forward


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before the whole model: what each stack is told."""
    tokens_BT, context = arguments(*args, **kwargs)
    source, memory_mask = context.source, context.memory_mask
    if isinstance(model, EncoderDecoderModel) and source is not None:
        source = replace(source, context=_before(model.encoder, source.context))
    tower = _towers(model)[-1]
    crossing = sum(one.count for cross in _crosses(tower)[:1] for one in _on(cross))
    if crossing and source is not None:
        source = replace(source, mask=AheadMask(source.mask, crossing))
    if crossing and memory_mask is not None:
        memory_mask = AheadMask(memory_mask, crossing)
    return (tokens_BT, _before(tower, context.with_(source=source, memory_mask=memory_mask))), {}


def _before(tower: Tower, context: Context) -> Context:
    """What a stack is told, with the keys that stand ahead in it."""
    parts = _attentions(tower)
    count = sum(one.count for one in _on(parts[0]))
    if not count:
        return context
    first = context.key_positions is None or context.key_positions.shape[-1] == context.positions.shape[-1]
    hidden = {one.name: one() for one in _adapters(tower) if isinstance(one, PrefixNetwork)} if first else {}
    pairs: dict[int | str, Callable[[], Pair]] = {part.layer: partial(_pair, part, hidden) for part in parts}
    pairs |= {cross.slot: partial(_pair, cross, hidden) for cross in _crosses(tower) if _on(cross)}
    positions = later(context.positions, count)
    of_keys = positions if context.key_positions is None else later(context.key_positions, count)
    return context.with_(
        positions=positions,
        key_positions=torch.cat((_first_positions(of_keys, count), of_keys), -1),
        mask=AheadMask(context.mask, count, positions if positions.dim() == 2 else positions[:, 0]),
        state=Ahead(pairs, context.state, first),
    )


def _first_positions(positions: Tensor, count: int) -> Tensor:
    """0 ... P - 1 of the first axis, 0 of the others."""
    ahead = positions.new_zeros(*positions.shape[:-1], count)
    (ahead if positions.dim() == 2 else ahead[:, 0]).copy_(torch.arange(count, device=positions.device))
    return ahead


def _pair(part: nn.Module, hidden: dict[str, Tensor]) -> Pair:
    """Of all active adapters of an attention part, one behind the other."""
    keys, values = zip(*(one(hidden.get(one.name)) for one in _on(part)), strict=True)
    return torch.cat(keys, 1), torch.cat(values, 1)


def _adapters(module: nn.Module) -> Iterator[Adapter]:
    """The active adapters of a module."""
    held = module._modules.get(ADAPTERS)
    for one in () if held is None else held.children():
        if isinstance(one, Adapter) and one.active:
            yield one


def _on(part: nn.Module) -> list[LayerPrefix]:
    return [one for one in _adapters(part) if isinstance(one, LayerPrefix)]


# ---- attention to an encoder's output, whose keys and values no state appends


def _of_call(cross: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the part: what stands ahead, in a call that brings the encoder's output."""
    _, context = arguments(*args, **kwargs)
    assert isinstance(cross, CrossAttention)
    cross.__dict__["ahead"] = None
    if context.memory is not None and _on(cross):
        assert isinstance(context.state, Ahead), "the whole model was called"
        cross.__dict__["ahead"] = context.state.pairs[cross.slot]()


def _before_memory(cross: nn.Module, which: int, linear: nn.Module, args: tuple[Any, ...], made_BMK: Tensor) -> Tensor | None:
    """Behind one of its two maps of the encoder's output: the same with what stands ahead."""
    pair: Pair | None = cross.__dict__["ahead"]
    if pair is None:
        return None
    ahead_PK = pair[which].transpose(0, 1).flatten(1).to(made_BMK.dtype)
    return torch.cat((ahead_PK.expand(len(made_BMK), -1, -1), made_BMK), 1)
