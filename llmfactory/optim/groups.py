"""Parameter groups: what weight decay applies to, and at which multiple of the learning rate each learns.

Decay pulls matrices towards zero; norm gains and biases are left alone, as the parts that own them declare.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import Optimizer

FACTOR = "lr_factor"
"""Key of a group: the multiple of the run's learning rate at which it learns."""

MATRIX = "matrix"
"""Key of a group: whether it is one of those apart, of matrices from features to features."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What each parameter of a model learns at, by name (`stage/rates.py` finds it)."""

    weight_decay: float
    decays: Mapping[str, bool | float]
    """Whether it applies, or a number in its place."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Multiples of the learning rate, of those that do not learn at 1."""
    matrices: Collection[str] = ()
    """Those in groups apart."""

    def groups(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Of the model, or of a part of it."""
        return groups(parameters, self.decays, self.weight_decay, self.factors, self.matrices)


def groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    decays: Mapping[str, bool | float],
    weight_decay: float,
    factors: Mapping[str, float] = MappingProxyType({}),
    matrices: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A group for each learning rate, decayed and not (an empty one is left out), of the named parameters that require gradients.

    `decays` says for each name whether decay applies, or a number of its own; a name without an entry is a `KeyError`, never a guess.
    `factors`: multiples of the learning rate, of names that do not learn at 1. `matrices`: names of those that stand in groups of
    their own.
    """
    found: dict[tuple[float, bool | float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            says = decays[name]
            decay = says if not isinstance(says, bool) else weight_decay if says else 0.0
            found.setdefault((factors.get(name, 1.0), decay, name in matrices), []).append(parameter)
    order = sorted(found, key=lambda key: (key[0] != 1.0, key[0], -key[1], not key[2]))
    return [{"params": found[key], "weight_decay": key[1], FACTOR: key[0], MATRIX: key[2]} for key in order]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Let each group learn at its multiple of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(FACTOR, 1.0)
