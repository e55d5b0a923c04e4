"""Negative sampling (Mikolov et al. 2013b, equation 4), what skip-gram and CBOW share.

    -log sigmoid(u_w h) - sum_{i=1..k} log sigmoid(-u_{n_i} h),    n_i ~ frequency^0.75

h is a vector made of words as themselves, u_w that of the word to be told as a neighbour, u_n those of random words.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.windows import Windows
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.spec import WordsSpec

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.corruption.corruption import Corruption
    from llmfactory.data.corruption.vocabulary import Vocabulary


class NegativeSampling(Objective):
    """One term, `loss`, over the words to be told. Their random words are drawn where the rows are read."""

    terms = ("loss",)
    each: bool
    """Each near word is to be told, not each word."""

    def __init__(self, spec: WordsSpec) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        assert vocabulary.texts, "how frequent tokens are is asked of the training text"
        return Windows(
            np.sum([text.frequencies(vocabulary.size) for text in vocabulary.texts], axis=0),
            seq_len,
            window=self.spec.window,
            negatives=self.spec.negatives,
            subsample=self.spec.subsample,
            noise_power=self.spec.noise_power,
            each=self.each,
        )

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """The words to be told, [B, T, S], -100 where there is none."""

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        targets_BTS, noise_BTSK = self.targets(batch), batch["noise"]
        kept_BTS = targets_BTS != IGNORE
        h_BTD1, noisy_BTSK = outputs.hidden[..., None], kept_BTS[..., None] & (noise_BTSK != IGNORE)
        near_BTS = _wide(_vectors(outputs, targets_BTS) @ h_BTD1)[..., 0]
        far_BTSK = _wide(_vectors(outputs, noise_BTSK.flatten(2)) @ h_BTD1).view(noise_BTSK.shape)
        total = F.logsigmoid(near_BTS)[kept_BTS].sum() + F.logsigmoid(-far_BTSK)[noisy_BTSK].sum()
        return {"loss": (-total, self.denominators(batch)["loss"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.targets(batch) != IGNORE).sum()}


def _vectors(outputs: Outputs, ids_BTS: Tensor) -> Tensor:
    """[B, T, S, D], of words as neighbours."""
    return F.embedding(ids_BTS.clamp_min(0), outputs.head.weight)


def _wide(scores: Tensor) -> Tensor:
    """In float32 at least: a loss is not summed up in the format of products."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
