"""One class for each document: the mean over documents of -log p(class), p the softmax of the head's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.spec import Classify

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class ClassifyObjective(Objective):
    """One term, `loss`. Labels are [B, K] for the K documents of a row."""

    terms = ("loss",)

    def __init__(self, spec: Classify) -> None:
        self.label_smoothing = spec.label_smoothing

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        labels_BK = batch["labels"]
        pooled_BKD = outputs.head.pool(outputs.hidden, batch["segments"], labels_BK.shape[1])
        logits = outputs.head(pooled_BKD).flatten(0, 1).float()
        total = F.cross_entropy(
            logits, labels_BK.flatten(), ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return {"loss": (total, self.denominators(batch)["loss"])}

    def plain(self) -> ClassifyObjective:
        """Without label smoothing."""
        return ClassifyObjective(Classify())

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["labels"] != IGNORE).sum()}
