"""DARE: drop changes at random and rescale the rest (Yu et al. 2024, section 3.2), then add them up or elect signs as TIES does.

What is dropped follows from the seed and the names of model and tensor alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfactory.core.sharding import name_seed
from llmfactory.stage.method.method import Method, agreeing_mean, learned, weighted_sum
from llmfactory.stage.method.spec import Dare, Then


def thinned(change: Tensor, drop: float, seed: int) -> Tensor:
    """m * change / (1 - p), with m = 0 at a share p of the places."""
    drawn = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed))
    return change * (drawn >= drop) / (1 - drop)


class DareMethod(Method):
    def __init__(self, spec: Dare, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        changes = {
            model: thinned(change, self.spec.drop, name_seed(self.seed, f"{model}:{name}"))
            for model, change in learned(base, others).items()
        }
        join = agreeing_mean if self.spec.then is Then.ties else weighted_sum
        return base + self.spec.scale * join(changes, weights)
