"""Process supervision (Lightman et al. 2023, section 2.5): a number z at the last token of each step.

    binary:   loss = sum_steps [ -y log sigmoid(z) - (1 - y) log sigmoid(-z) ] / steps,   y = 1 if the step's score is above the threshold
    squared:  loss = sum_steps (z - score)^2 / steps

over the steps that have a score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.reward_spec import Process, StepLoss

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class ProcessObjective(Objective):
    terms = ("loss",)
    watched = ("accuracy", "reward")
    sparse = True

    def __init__(self, spec: Process) -> None:
        self.spec = spec
        self.unit = "nats per step" if spec.loss is StepLoss.binary else "squared error"

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        steps_BT, counts = steps(batch), self.denominators(batch)
        logits_N = outputs.head(outputs.hidden[steps_BT])[..., 0]
        logits_N = logits_N.to(torch.promote_types(logits_N.dtype, torch.float32))
        scores_N = batch["rewards"][steps_BT].to(logits_N.dtype)
        right_N = (scores_N > self.spec.threshold).to(logits_N.dtype)
        if self.spec.loss is StepLoss.binary:
            loss = F.binary_cross_entropy_with_logits(logits_N, right_N, reduction="sum")
            found_N = logits_N.detach() > 0
        else:
            loss = (logits_N - scores_N).square().sum()
            found_N = logits_N.detach() > self.spec.threshold
        return {
            "loss": (loss, counts["loss"]),
            "accuracy": ((found_N == right_N.bool()).to(logits_N.dtype).sum(), counts["accuracy"]),
            "reward": (logits_N.detach().sum(), counts["reward"]),
        }

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys((*self.terms, *self.watched), steps(batch).sum())


def steps(batch: Batch) -> Tensor:
    """[B, T], whether a step ends there that has a score; a row of padding has none."""
    counts_B = (batch["labels"] != IGNORE).any(-1)
    return batch["rewards"].isfinite() & (batch["segments"] > 0) & counts_B[:, None]
