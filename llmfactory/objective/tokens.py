"""Cross-entropy of tokens: what all objectives share that ask for one token of the vocabulary at some places of a row.

loss = sum_t w_t (-log p(label_t)) / sum_t w_t, over the places t that have a label; w = 1 where the batch has no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class TokenObjective(Objective):
    """One term, `loss`."""

    terms = ("loss",)
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sparse = True  # most places have no label

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        hidden, labels, weights = outputs.hidden, batch["labels"], batch.get("weights")
        if self.sparse:
            kept = labels != IGNORE
            hidden, labels, weights = hidden[kept], labels[kept], None if weights is None else weights[kept]
        total = outputs.head.cross_entropy(hidden, labels, weights, self.label_smoothing, self.z_loss)
        return {"loss": (total, self.denominators(batch)["loss"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        kept = batch["labels"] != IGNORE
        weights = batch.get("weights")
        return {"loss": kept.sum() if weights is None else (weights.double() * kept).sum()}
