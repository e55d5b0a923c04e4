"""Bottleneck adapters (Houlsby et al. 2019, section 2.1): a(z) = up(activation(down(z))), D -> width -> D with biases.

Of a sub-layer f they make f(x) + s a(f(x)), or beside it f(x) + s a(x) (He et al. 2022, table 1), before the residual sum. `up`
begins as zero, so that training starts at the base. They work on each token by itself, wherever a layout has put it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.encoder_decoder import EncoderDecoderModel
from llmfactory.model.multimodal import MultimodalModel
from llmfactory.model.part import declare_linear
from llmfactory.model.recurrent import RecurrentModel
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.tower import Tower
from llmfactory.peft.adapter_spec import Adapter as AdapterSpec
from llmfactory.peft.adapter_spec import Placement
from llmfactory.peft.part import ADAPTERS, Adapter, attach

STD = 0.01
"""Of the first map's initial matrix (Houlsby et al. 2019, section 3.6)."""


class Bottleneck(Adapter):
    """[..., D] -> [..., D], what is added."""

    def __init__(self, spec: AdapterSpec, name: str, dim: int) -> None:
        super().__init__(name)
        self.beside = spec.placement is Placement.parallel
        self.activation, self.scale, self.dropout = FUNCTIONS[spec.activation], spec.scale, spec.dropout
        self.down, self.up = nn.Linear(dim, spec.width), nn.Linear(spec.width, dim)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("down", self.down, STD, Layout.replicated),
            **declare_linear("up", self.up, 0.0, Layout.replicated),
        }

    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(self.activation(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(z)  # type: ignore[no-any-return]


def adapt(spec: AdapterSpec, model: Skeleton, name: str) -> None:
    for part in sub_layers(model, attention=spec.placement is Placement.houlsby):
        attach(part, Bottleneck(spec, name, model.spec.dim))
        if len(part.get_submodule(ADAPTERS)._modules) == 1:
            part.register_forward_pre_hook(_read)
            part.register_forward_hook(_add)


def sub_layers(model: nn.Module, attention: bool) -> Iterator[nn.Module]:
    """The parts that write to the residual stream of text, block by block: feed-forward, and with `attention` what stands before it."""
    if isinstance(model, MultimodalModel):
        model = model.decoder
    if isinstance(model, EncoderDecoderModel):
        for side in (model.encoder, model.decoder):
            yield from sub_layers(side, attention)
    elif isinstance(model, RecurrentModel):
        for layer in model.layers:
            first, second = layer._modules["mixer"], layer._modules.get("ffn")
            yield from (part for part in ((first, second) if attention or second is None else (second,)) if part is not None)
    elif isinstance(model, Tower):
        for block in model.blocks:
            yield from (part for key in ("attention", "ffn") if attention or key == "ffn" if (part := block._modules[key]))
    else:
        raise TypeError(f"{type(model).__name__} has no blocks that adapters could stand in")


def _on(part: nn.Module) -> list[Bottleneck]:
    return [one for one in part.get_submodule(ADAPTERS).children() if isinstance(one, Bottleneck) and one.active]


def _read(part: nn.Module, args: tuple[Any, ...]) -> None:
    """Before the part, and before a layout changes what it reads: what stands beside it."""
    beside = [one(args[0]) for one in _on(part) if one.beside]
    part.__dict__["beside"] = torch.stack(beside).sum(0) if beside else None


def _add(part: nn.Module, args: tuple[Any, ...], y_BTD: Tensor) -> Tensor:
    """Behind the part, and behind what a layout does to what it gives."""
    for one in _on(part):
        if not one.beside:
            y_BTD = y_BTD + one(y_BTD)
    beside: Tensor | None = part.__dict__.pop("beside")
    return y_BTD if beside is None else y_BTD + beside
