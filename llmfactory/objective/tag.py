"""One class for each word, at its first token (Devlin et al. 2018, section 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.objective.classes import ClassObjective
from llmfactory.objective.objective import Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class TagObjective(ClassObjective):
    """Labels are [B, T]."""

    def logits(self, outputs: Outputs, batch: Batch) -> Tensor:
        return outputs.head(outputs.hidden)
