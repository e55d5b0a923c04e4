"""Contrastive preference optimization (Xu et al. 2024, equation 5).

    loss = -log sigmoid(beta [log p(y_c | x) - log p(y_r | x)]) - nll * sum log p(y_c | x) / tokens

DPO's loss with a uniform reference, and the likelihood of the chosen answers as what keeps the model near them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from llmfactory.objective.pairs import PairObjective, Side, logistic
from llmfactory.objective.preference_spec import Cpo, Reference


class CpoObjective(PairObjective):
    def __init__(self, spec: Cpo, reference: Reference) -> None:
        PairObjective.__init__(self, reference, spec.nll)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        return logistic(self.spec.beta * (chosen.logps - rejected.logps), self.spec.label_smoothing)

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * side.logps

    def plain(self) -> CpoObjective:
        """Without label smoothing."""
        return CpoObjective(replace(self.spec, label_smoothing=0.0), self.reference)
