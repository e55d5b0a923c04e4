"""One class for each document, from the head's vector of it (Devlin et al. 2018, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.objective.classes import ClassObjective
from llmfactory.objective.objective import Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class ClassifyObjective(ClassObjective):
    """Labels are [B, K] for the K documents of a row."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def logits(self, outputs: Outputs, batch: Batch) -> Tensor:
        pooled_BKD = outputs.head.pool(outputs.hidden, batch["segments"], batch["labels"].shape[1])
        return outputs.head(pooled_BKD)

    def plain(self) -> ClassifyObjective:
        """Without label smoothing."""
        return ClassifyObjective(0.0)
