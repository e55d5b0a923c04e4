"""First and last token of an answer (Devlin et al. 2018, section 4.2): the softmax is over the row's tokens, for each end apart.

Padding is no candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.objective.classes import ClassObjective
from llmfactory.objective.objective import Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class SpanObjective(ClassObjective):
    """Labels are [B, 2], columns of the row."""

    def logits(self, outputs: Outputs, batch: Batch) -> Tensor:
        scores_BT2 = outputs.head(outputs.hidden)
        padding_BT1 = (batch["segments"] == 0)[..., None]
        return scores_BT2.masked_fill(padding_BT1, float("-inf")).transpose(1, 2)
