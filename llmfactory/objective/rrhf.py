"""Rank responses to align (Yuan et al. 2023, equations 2 to 4), on several answers to a prompt, the best first.

    p_i = log p(y_i | x) / |y_i|^a
    loss = w * sum over pairs i better than j of max(0, p_j - p_i), the mean over records  - sum log p(y_1 | x) / tokens of the best

Answers with equal scores are no pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.answers import AnswersObjective, log_probs, share, tokens
from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.preference_spec import Reference, Rrhf

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class RrhfObjective(AnswersObjective):
    terms = ("order", "nll")
    watched = ("accuracy",)
    unit = "nats per record"

    def __init__(self, spec: Rrhf) -> None:
        AnswersObjective.__init__(self, Reference.none)
        self.spec = spec

    def answers(self, batch: Batch) -> int:
        return batch["scores"].shape[1]

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logps_BK = log_probs(outputs, batch, self.answers(batch))
        tokens_BK = tokens(batch, self.answers(batch), outputs.pieces).to(logps_BK.dtype)
        scores_BK = logps_BK / tokens_BK.clamp(min=1) ** self.spec.length_power
        behind_BKK = scores_BK[:, None, :] - scores_BK[:, :, None]  # [b, i, j]: by how much j is more likely than i
        pairs_BKK, part = better(batch["scores"], tokens_BK > 0), share(outputs)
        right = ((behind_BKK < 0).to(scores_BK.dtype) + 0.5 * (behind_BKK == 0).to(scores_BK.dtype)).detach()
        sums = {
            "order": self.spec.weight * part * (behind_BKK.relu() * pairs_BKK).sum(),
            "nll": -part * logps_BK[:, 0].sum(),
            "accuracy": part * (right * pairs_BKK).sum(),
        }
        counts = self.denominators(batch)
        return {name: (total, counts[name]) for name, total in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        kept_BT = batch["labels"] != IGNORE
        pairs_BKK = better(batch["scores"], tokens(batch, self.answers(batch)) > 0)
        best = (kept_BT & (batch.get("branches", batch["segments"]) == 1)).sum()
        return {"order": kept_BT.any(1).sum(), "nll": best, "accuracy": pairs_BKK.sum()}


def better(scores_BK: Tensor, there_BK: Tensor) -> Tensor:
    """[B, K, K], whether answer i is better than j: it stands before it, and has no equal score."""
    size = scores_BK.shape[1]
    before_KK = torch.ones(size, size, dtype=torch.bool, device=scores_BK.device).triu(1)
    equal_BKK = scores_BK[:, :, None] == scores_BK[:, None, :]
    return before_KK & ~equal_BKK & there_BK[:, :, None] & there_BK[:, None, :]
