"""How large gradients and steps are, part by part: of each layer, of the embedding, of the head.

    grad_norm/<part> = |g|, before clipping        update_ratio/<part> = |w after the step - w| / |w|

A healthy ratio is about 1e-3; a part far from the others learns too fast or not at all. Measured at steps that are logged only, whose
weights are copied for it; nothing waits for the device until they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmfactory.parallel.clip import norms
from llmfactory.parallel.mesh import World

PART = re.compile(r"(.*?\.\d+)\.|([^.]+)")


class Magnitudes:
    """Of every `every`-th step, the first one and the last."""

    def __init__(self, every: int, last: int) -> None:
        self.every, self.last = every, last
        self._names: list[str] = []
        self._before: list[Tensor] = []
        self._found: list[Tensor] = []
        """Norms of gradients, of steps and of weights, of the parameters in `_names`."""

    @torch.no_grad()
    def before(self, model: nn.Module, step: int, scale: Tensor | None) -> None:
        """The gradients of a step, counted from 0, are complete; `scale`: the loss was multiplied by it."""
        self._names, self._before, self._found = [], [], []
        if step != 0 and (step + 1) % self.every and step + 1 != self.last:
            return
        learning = [(name, one) for name, one in model.named_parameters() if one.grad is not None]
        if learning:
            self._names, weights = [name for name, _ in learning], [one for _, one in learning]
            gradients = _norms([one.grad for one in weights if one.grad is not None])
            self._found = [gradients if scale is None else gradients / scale, _norms(weights)]
            self._before = [one.detach().clone() for one in weights]

    @torch.no_grad()
    def after(self, model: nn.Module) -> None:
        """The step was made, or left out."""
        if self._before:
            named = dict(model.named_parameters())
            steps = [named[name].detach() - old for name, old in zip(self._names, self._before, strict=True)]
            self._found.append(_norms(steps))
            self._before = []

    def read(self, world: World) -> dict[str, float]:
        """Of the last step, if it was one that is measured. Called by every process; waits for the device."""
        own = dict(zip(self._names, torch.stack(self._found, 1).tolist(), strict=True)) if self._names else {}
        if world.degrees.get("pp", 1) > 1:  # others have other layers; what two of them share is there under one name
            own = {name: found for one in world.gather(own) for name, found in one.items()}
        return by_part(own)


def by_part(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Metrics, of norms of gradient, weight and step of each parameter."""
    squares: dict[str, list[float]] = {}
    for name, numbers in found.items():
        sums = squares.setdefault(part_of(name), [0.0, 0.0, 0.0])
        for place, number in enumerate(numbers):
            sums[place] += number * number
    gradients = {f"grad_norm/{part}": sums[0] ** 0.5 for part, sums in squares.items()}
    return gradients | {f"update_ratio/{part}": (sums[2] / sums[1]) ** 0.5 for part, sums in squares.items() if sums[1]}


def part_of(name: str) -> str:
    """`blocks.3` of `blocks.3.ffn.up.weight`, `head` of `head.weight`."""
    found = PART.match(name)
    assert found is not None
    return found[1] or found[2]


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """[N], in float32 at least."""
    return norms([one.detach().to(torch.promote_types(one.dtype, torch.float32)) for one in tensors])
