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
    asking = {f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, Adapted) and needs_base(one)}
    weights = {name: module._parameters["weight"] for name, module in asking.items()}
    there = {name: weight for name, weight in weights.items() if weight is not None}  # not those of other stages of a pipeline

    def start(name: str, whole: Tensor) -> None:
        if name in there:
            see(asking[name], whole)

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
