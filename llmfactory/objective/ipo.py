"""Identity preference optimization (Azar et al. 2023, equation 17).

    loss = (log p(y_c | x) / q(y_c | x) - log p(y_r | x) / q(y_r | x) - 1 / (2 beta))^2

Log-ratios are divided by the tokens of their answers, unless the sums are asked for.
"""

from __future__ import annotations

from torch import Tensor

from llmfactory.objective.pairs import PairObjective, Side
from llmfactory.objective.preference_spec import Ipo, Reference


class IpoObjective(PairObjective):
    unit = "squared nats per pair"

    def __init__(self, spec: Ipo, reference: Reference) -> None:
        PairObjective.__init__(self, reference)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        return (self._score(chosen) - self._score(rejected) - 1 / (2 * self.spec.beta)).square()

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * self._score(side)

    def _score(self, side: Side) -> Tensor:
        return side.ratios / side.tokens.clamp(min=1) if self.spec.average else side.ratios
