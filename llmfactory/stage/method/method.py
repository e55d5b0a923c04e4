"""The interface of the ways to merge models: one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor


class Method(ABC):
    @abstractmethod
    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """The tensor called `name` of the new model, from that of `init` and those of the others by model, all of one shape, in float32
        at least. `weights`: of `init` and of each model."""


def learned(base: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each model has learned on top of `init`, its task vector (Ilharco et al. 2023, section 2)."""
    return {name: other - base for name, other in others.items()}


def weighted_sum(changes: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    first, *rest = changes
    total = weights[first] * changes[first]
    for name in rest:
        total += weights[name] * changes[name]
    return total


def agreeing_mean(changes: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Yadav et al. 2023, section 4.2, steps 2 and 3: the sign of the sum is elected, and the mean is over the models whose change has
    it, weighted; 0 where none has."""
    sign = weighted_sum(changes, weights).sign()
    total, count = sign.new_zeros(sign.shape), sign.new_zeros(sign.shape)
    for name, change in changes.items():
        with_it = ((weights[name] * change).sign() == sign) & (sign != 0)
        total += weights[name] * change * with_it
        count += abs(weights[name]) * with_it
    return total / count.clamp_min(1e-300 if count.element_size() == 8 else 1e-30)
