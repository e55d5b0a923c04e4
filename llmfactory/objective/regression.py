"""The score of an answer as its reward.

loss = sum_answers (r - (s - offset) / scale)^2 / answers that have a score s
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.reward_spec import Regression
from llmfactory.objective.rewards import RewardObjective, present, total

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class RegressionObjective(RewardObjective):
    watched = ("error", "reward")
    unit = "squared error"

    def __init__(self, spec: Regression) -> None:
        self.spec = spec

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        scores_BK, counts = scores(batch), self.denominators(batch)
        rewards_BK = self.rewards(outputs, batch, scores_BK.shape[1])
        there_BK = scores_BK.isfinite() & present(batch, scores_BK.shape[1])
        known_BK = scores_BK.masked_fill(~there_BK, 0.0).to(rewards_BK.dtype)  # the gradient of what is left out would be NaN too
        error_BK = rewards_BK - (known_BK - self.spec.offset) / self.spec.scale
        sums = {"loss": error_BK.square(), "error": error_BK.detach().abs(), "reward": rewards_BK.detach()}
        return {name: (total(value_BK, there_BK), counts[name]) for name, value_BK in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        scores_BK = scores(batch)
        count = (scores_BK.isfinite() & present(batch, scores_BK.shape[1])).sum()
        return dict.fromkeys((*self.terms, *self.watched), count)


def scores(batch: Batch) -> Tensor:
    """[B, K], NaN where an answer has none."""
    return batch["scores"] if "scores" in batch else batch["score"][:, None]
