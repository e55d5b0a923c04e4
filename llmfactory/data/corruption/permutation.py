"""An order in which the last tokens are predicted (XLNet, Yang et al. 2019, sections 2.2 and 2.3).

Of each document's n tokens, round(n / K) random ones come last in the factorization order, in random order, and are predicted;
the others are given. As in the authors' code, the given ones share place 0: they see each other, and every predicted token sees
all of them and the predicted ones before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import documents
from llmfactory.data.corruption.ragged import owners, ranks

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.order import Words as Keys


class Permutation(Corruption):
    """Tokens as they are, `order` [B, T], labels [B, T]: what stands at the place itself."""

    def __init__(self, seq_len: int, end_id: int, predicted: float) -> None:
        self.raw_length, self.end_id, self.predicted = seq_len, end_id, predicted

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        import torch

        tokens_BT = batch["tokens"].numpy()
        text = documents(batch, keys_B, self.end_id)
        # One random number decides both: who is predicted, and in which order.
        rank_N = ranks(text.uniform(0), text.length_P)
        count_P = np.where(text.length_P > 1, np.rint(self.predicted * text.length_P).clip(1, text.length_P - 1), 0).astype(int)
        given_N = (text.length_P - count_P)[owners(text.length_P)]
        chosen_N = rank_N >= given_N
        order, labels = np.zeros(tokens_BT.size, np.int64), np.full(tokens_BT.size, IGNORE, np.int64)
        order[text.place_N[chosen_N]] = (rank_N - given_N + 1)[chosen_N]
        labels[text.place_N[chosen_N]] = text.tokens_N[chosen_N]
        return {
            **batch,
            "order": torch.from_numpy(order.reshape(tokens_BT.shape)),
            "labels": torch.from_numpy(labels.reshape(tokens_BT.shape)),
        }
