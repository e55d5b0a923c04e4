"""Direct preference optimization (Rafailov et al. 2023, equation 7).

    h = beta [log p(y_c | x) / q(y_c | x) - log p(y_r | x) / q(y_r | x)]
    loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h)

e, the label smoothing, is the share of pairs that are the wrong way round (Mitchell 2023, cDPO). The robust form (Chowdhury et al.
2024, equation 12) subtracts the second term and divides by 1 - 2e: its mean over such labels is the loss of the right ones.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from llmfactory.objective.pairs import PairObjective, Side, logistic
from llmfactory.objective.preference_spec import Dpo, Reference


class DpoObjective(PairObjective):
    def __init__(self, spec: Dpo, reference: Reference) -> None:
        PairObjective.__init__(self, reference)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        difference, e = self.spec.beta * (chosen.ratios - rejected.ratios), self.spec.label_smoothing
        if self.spec.robust:
            return (-(1 - e) * F.logsigmoid(difference) + e * F.logsigmoid(-difference)) / (1 - 2 * e)
        return logistic(difference, e)

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * side.ratios

    def plain(self) -> DpoObjective:
        """Without label smoothing."""
        return DpoObjective(replace(self.spec, label_smoothing=0.0, robust=False), self.reference)
