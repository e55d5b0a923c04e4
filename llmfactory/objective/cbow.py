"""Continuous bag of words (Mikolov et al. 2013a, section 3.1): h is the mean vector of the words near a word, which is to be
told. A word with none near it is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.objective.negative_sampling import NegativeSampling
from llmfactory.objective.objective import Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.model.skeleton import Skeleton


class CbowObjective(NegativeSampling):
    unit = "nats per word"
    each = False

    def outputs(self, model: Skeleton, batch: Batch, context: Context) -> Outputs:
        near_BTC = batch["near"]
        kept_BTC1 = (near_BTC != IGNORE)[..., None]
        vectors_BTCD = model(near_BTC.clamp_min(0), context) * kept_BTC1
        return Outputs(vectors_BTCD.sum(2) / kept_BTC1.sum(2).clamp_min(1), model.head)

    def targets(self, batch: Batch) -> Tensor:
        lonely_BT = (batch["near"] == IGNORE).all(-1)
        return batch["labels"].masked_fill(lonely_BT, IGNORE)[..., None]
