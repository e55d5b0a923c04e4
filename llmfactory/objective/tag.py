"""One class for each word: the mean over labelled tokens of -log p(tag), p the softmax of the head's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class TagObjective(Objective):
    """One term, `loss`. Labels are [B, T]."""

    terms = ("loss",)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logits = outputs.head(outputs.hidden).flatten(0, 1).float()
        total = F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum")
        return {"loss": (total, self.denominators(batch)["loss"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["labels"] != IGNORE).sum()}
