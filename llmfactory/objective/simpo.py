"""Simple preference optimization (Meng et al. 2024, equation 6).

loss = -log sigmoid(beta [log p(y_c | x) / |y_c| - log p(y_r | x) / |y_r|] - gamma)
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from llmfactory.objective.pairs import PairObjective, Side, logistic
from llmfactory.objective.preference_spec import Reference, Simpo


class SimpoObjective(PairObjective):
    def __init__(self, spec: Simpo, reference: Reference) -> None:
        PairObjective.__init__(self, reference)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        return logistic(self.reward(chosen) - self.reward(rejected) - self.spec.gamma, self.spec.label_smoothing)

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * side.mean

    def plain(self) -> SimpoObjective:
        """Without label smoothing."""
        return SimpoObjective(replace(self.spec, label_smoothing=0.0), self.reference)
