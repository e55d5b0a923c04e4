"""First and last token of an answer (Devlin et al. 2018, section 4.2): the mean over rows and both ends of -log p(token).

For each end, p is the softmax of the head's scores over the tokens of the row that are no padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.objective import Objective, Outputs, Terms

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class SpanObjective(Objective):
    """One term, `loss`. Labels are [B, 2], columns of the row."""

    terms = ("loss",)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logits_BTE = outputs.head(outputs.hidden).float().masked_fill((batch["segments"] == 0)[..., None], float("-inf"))
        total = F.cross_entropy(
            logits_BTE.transpose(1, 2).flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return {"loss": (total, self.denominators(batch)["loss"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["labels"] != IGNORE).sum()}
