"""Comparison of two answers (Bradley and Terry 1952; Ouyang et al. 2022, equation 1; Touvron et al. 2023, equation 2).

    loss = sum_pairs [ -log sigmoid(r_chosen - r_rejected - a m) + c (r_chosen + r_rejected)^2 ] / pairs

with the pair's margin m, a = `margin_scale`, c = `center`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.reward_spec import BradleyTerry
from llmfactory.objective.rewards import RewardObjective, present, rightly_ordered, total

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class BradleyTerryObjective(RewardObjective):
    watched = ("accuracy", "margin", "reward")
    unit = "nats per pair"

    def __init__(self, spec: BradleyTerry) -> None:
        self.spec = spec

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        pairs_B = present(batch, 2).all(-1)
        chosen_B, rejected_B = self.rewards(outputs, batch, 2).unbind(-1)
        difference_B = chosen_B - rejected_B
        needed_B = self.spec.margin_scale * batch["margin"].to(difference_B.dtype).nan_to_num(0.0)
        loss_B = -F.logsigmoid(difference_B - needed_B)
        if self.spec.center:
            loss_B = loss_B + self.spec.center * (chosen_B + rejected_B).square()
        counts = self.denominators(batch)
        sums = {
            "loss": loss_B,
            "accuracy": rightly_ordered(difference_B.detach()),
            "margin": difference_B.detach(),
            "reward": (chosen_B + rejected_B).detach() / 2,
        }
        return {name: (total(value, pairs_B), counts[name]) for name, value in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys((*self.terms, *self.watched), present(batch, 2).all(-1).sum())

    def plain(self) -> BradleyTerryObjective:
        """The likelihood of the choices alone."""
        return BradleyTerryObjective(replace(self.spec, margin_scale=0.0, center=0.0))
