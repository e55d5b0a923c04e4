"""A cut in each document (prefix LM, Liu et al. 2018; Raffel et al. 2020, section 3.2.2): all of what stands before it is seen at
once, what stands after it is predicted.

The cut of a document of n tokens is uniform among its n places after a token, so that at least one token is given and one is
predicted; the last token of the prefix predicts the first one after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import uniform
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import first_of_segment

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.order import Words as Keys


class Prefix(Corruption):
    """Tokens as they are, `prefix` [B, T], labels after the cut."""

    def __init__(self, seq_len: int) -> None:
        self.raw_length = seq_len

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        import torch

        segments_BT, labels_BT = batch["segments"].numpy(), batch["labels"].numpy()
        B, T = segments_BT.shape
        column_T = np.arange(T)
        first_BT = first_of_segment(segments_BT)
        begin_BT = np.maximum.accumulate(np.where(first_BT, column_T, 0), 1)
        last_BT = np.ones((B, T), bool)
        last_BT[:, :-1] = first_BT[:, 1:]
        end_BT = np.minimum.accumulate(np.where(last_BT, column_T, T)[:, ::-1], 1)[:, ::-1]
        drawn_BT = np.take_along_axis(uniform(keys_B, T, 0), begin_BT, 1)
        size_BT = end_BT - begin_BT + 1
        cut_BT = 1 + np.minimum(size_BT - 1, (drawn_BT * size_BT).astype(np.int64))  # tokens of the prefix
        place_BT = column_T - begin_BT
        return {
            **batch,
            "prefix": torch.from_numpy(((place_BT < cut_BT) & (segments_BT > 0)).astype(np.int64)),
            "labels": torch.from_numpy(np.where(place_BT >= cut_BT - 1, labels_BT, IGNORE)),
        }
