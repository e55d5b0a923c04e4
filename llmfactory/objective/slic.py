"""Sequence likelihood calibration (Zhao et al. 2023, SLiC-HF, equation 3).

loss = max(0, margin - beta (s_c - s_r)) - nll * sum log p(y_c | x) / tokens,     s = log p(y | x), or with a reference log p / q
"""

from __future__ import annotations

from torch import Tensor

from llmfactory.objective.pairs import PairObjective, Side
from llmfactory.objective.preference_spec import Reference, Slic


class SlicObjective(PairObjective):
    def __init__(self, spec: Slic, reference: Reference) -> None:
        PairObjective.__init__(self, reference, spec.nll)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        return (self.spec.margin - self.spec.beta * (chosen.ratios - rejected.ratios)).relu()

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * side.ratios
