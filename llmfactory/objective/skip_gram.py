"""Skip-gram (Mikolov et al. 2013a, section 3.2; 2013b, equation 4): h is a word's vector, each word near it is to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.negative_sampling import NegativeSampling

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class SkipGramObjective(NegativeSampling):
    unit = "nats per pair of words"
    each = True

    def targets(self, batch: Batch) -> Tensor:
        return batch["near"].masked_fill(batch["segments"][..., None] == 0, IGNORE)
