"""Cross-entropy of one class among a few: what the tasks on top of a model share.

loss = sum_n (-log p(label_n)) / N over the N places that have a label, p the softmax of the head's logits there.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class ClassObjective(Objective):
    """One term, `loss`."""

    terms = ("loss",)
    unit = "nats per label"
    label_smoothing: float = 0.0

    @abstractmethod
    def logits(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[..., C] for labels [...]."""

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logits = self.logits(outputs, batch).flatten(0, 1)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = batch["labels"].flatten()
        total = F.cross_entropy(wide, labels, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum")
        return {"loss": (total, self.denominators(batch)["loss"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["labels"] != IGNORE).sum()}
