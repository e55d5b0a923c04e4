"""Comparison of all answers to a prompt (Ouyang et al. 2022, equation 1).

    loss = sum_records [ sum_{i better than j} -log sigmoid(r_i - r_j) / pairs of the record ] / records

so that a record with nine answers counts as much as one with two. Answers stand in order, the best first; where they have scores,
two equal ones are no pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.rewards import RewardObjective, present, rightly_ordered

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class RankingObjective(RewardObjective):
    watched = ("accuracy", "margin", "reward")
    unit = "nats per pair"

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        pairs_BKK, counts = pairs(batch), self.denominators(batch)
        rewards_BK = self.rewards(outputs, batch, batch["scores"].shape[1])
        difference_BKK = rewards_BK[:, :, None] - rewards_BK[:, None, :]
        there_BK = pairs_BKK.any(1) | pairs_BKK.any(2)
        still_BKK = difference_BKK.detach()
        sums = {
            "loss": _mean(-F.logsigmoid(difference_BKK), pairs_BKK),
            "accuracy": _mean(rightly_ordered(still_BKK), pairs_BKK),
            "margin": _mean(still_BKK, pairs_BKK),
            "reward": _mean(rewards_BK.detach(), there_BK),
        }
        return {name: (value_B.sum(), counts[name]) for name, value_B in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys((*self.terms, *self.watched), pairs(batch).flatten(1).any(-1).sum())


def pairs(batch: Batch) -> Tensor:
    """[B, K, K], whether answer i is better than answer j."""
    scores_BK = batch["scores"]
    there_BK = present(batch, scores_BK.shape[1])
    order_KK = torch.ones(scores_BK.shape[1], scores_BK.shape[1], dtype=torch.bool, device=scores_BK.device).triu(1)
    equal_BKK = scores_BK[:, :, None] == scores_BK[:, None, :]  # never of NaN
    return there_BK[:, :, None] & there_BK[:, None, :] & order_KK & ~equal_BKK


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """[B], the mean of each row's values at some places; 0 where it has none."""
    values, where = values.flatten(1), where.flatten(1)
    return (values * where).sum(-1) / where.sum(-1).clamp_min(1)
