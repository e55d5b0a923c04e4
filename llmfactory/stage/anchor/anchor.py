"""A penalty on how far weights have gone from those that training started from: strength / 2 sum_i f_i (w_i - w*_i)^2.

It is no term of the loss that goes through the model. Its gradient, strength f (w - w*), is added once to each step's gradients, to
every process's pieces of them, before they are measured and clipped. So it depends neither on micro-batches nor on how weights are
laid out, and what is clipped and stepped with is the gradient of loss + penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor, nn

from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import local


class Anchor(ABC):
    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.held: dict[str, tuple[Tensor, Tensor | None]] = {}
        """By name, w* and f of this process's piece; no f: ones."""

    @abstractmethod
    def importance(self, name: str, parameter: nn.Parameter) -> Tensor | None:
        """f of this process's piece of a parameter; None: ones."""

    def hold(self, model: nn.Module, names: Collection[str]) -> None:
        """From now on, hold the parameters of these names at the values that they have."""
        for name, parameter in model.named_parameters():
            if name in names and parameter.requires_grad:
                self.held[name] = local(parameter).clone(), self.importance(name, parameter)

    @torch.no_grad()
    def pull(self, model: nn.Module, scale: Tensor | None) -> None:
        """Add the penalty's gradient to a step's gradients; `scale`: the loss was multiplied by it."""
        for name, parameter in model.named_parameters():
            if name in self.held and parameter.grad is not None:
                start, importance = self.held[name]
                force = self.strength * (local(parameter) - start)
                force = force if importance is None else force * importance
                local(parameter.grad).add_(force if scale is None else force * scale)

    @torch.no_grad()
    def penalty(self, model: nn.Module, world: World) -> float:
        """Over all processes, each of which calls this; waits for the device.

        Several may hold the same piece of a parameter. As many as hold one hold all, so that what their numbers add up to is
        divided by how often each of its elements was counted.
        """
        mine: dict[str, tuple[float, int, int]] = {}
        for name, parameter in model.named_parameters():
            if name in self.held:
                start, importance = self.held[name]
                square = (local(parameter) - start).double().square()
                here = float((square if importance is None else square * importance).sum())
                mine[name] = (here, start.numel(), parameter.numel())
        everywhere = world.gather(mine)
        sums: dict[str, float] = {}
        counted: dict[str, int] = {}
        for part in everywhere:
            for name, (here, count, _) in part.items():
                sums[name], counted[name] = sums.get(name, 0.0) + here, counted.get(name, 0) + count
        whole = {name: size for part in everywhere for name, (_, _, size) in part.items()}
        total: float = sum(sums[name] * whole[name] / max(1, counted[name]) for name in sums)
        return self.strength / 2 * total
