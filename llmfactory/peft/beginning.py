"""First values of adapters that depend on the weights that they stand beside."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import assemble, put
from llmfactory.peft.part import Adapted


def begin(model: Skeleton, world: World) -> None:
    """Let each adapter of a linear map that asks for it see the whole matrix, one after the other, however it lies over `world`."""
    asking = {name: module for name, module in model.named_modules() if isinstance(module, Adapted) and needs_base(module)}
    pieces = {f"{name}.weight": module._parameters["weight"] for name, module in asking.items()}

    def start(name: str, whole: Tensor) -> None:
        module = asking.get(name.rpartition(".")[0])
        if module is not None:
            see(module, whole)

    there = {name: piece for name, piece in pieces.items() if piece is not None}
    assemble(there, world, start)


def needs_base(module: Adapted) -> bool:
    return any(adapter.needs_base for adapter in module.on())


@torch.no_grad()
def see(module: Adapted, whole: Tensor) -> None:
    """Give the adapters of a linear map the first values for its whole matrix."""
    for adapter in module.on():
        first = adapter.first(whole)
        for name, value in first.values.items():
            own = adapter._parameters[name]
            assert own is not None
            put(own, value)
        if first.weight is not None:
            weight = module._parameters["weight"]
            assert weight is not None
            put(weight, first.weight)
