"""Masked tokens (BERT, Devlin et al. 2019, section 3.1): some tokens of a row are hidden and must be told from the others.

Of each row's n tokens, round(rate n) are chosen, at least one. A chosen token becomes the mask (80 %), a random token (10 %) or
stays (10 %); its label is what it was. With whole words, all tokens of a word are chosen together until that many are reached.
End tokens are never chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.core.special import MASK
from llmfactory.data.corruption.chance import uniform
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import first_of_segment
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.words import words

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.corruption.ragged import Bool
    from llmfactory.data.order import Words as Keys
    from llmfactory.data.pack.rows import Int64


class Masked(Corruption):
    """Tokens with holes; the labels are what stood there. `uniform` [B, T]: further random numbers, where asked for."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        *,
        rate: float,
        mask_share: float,
        random_share: float,
        whole_words: bool = False,
        static: bool = False,
        spare: bool = False,
    ) -> None:
        self.raw_length, self.static = seq_len, static
        self.rate, self.mask_share, self.random_share, self.spare = rate, mask_share, random_share, spare
        self.end_id, self.text_size = vocabulary.end_id, vocabulary.text_size
        (self.mask_id,) = vocabulary.ids([MASK])
        self.words = words(vocabulary.tokenizer) if whole_words else None

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        import torch

        tokens_BT, T = batch["tokens"].numpy(), batch["tokens"].shape[1]
        chosen_BT = self.choose(batch, keys_B)
        what_BT, other_BT = uniform(keys_B, T, 1), uniform(keys_B, T, 2)
        shown_BT = np.where(what_BT < self.mask_share, self.mask_id, tokens_BT)
        random_BT = (what_BT >= self.mask_share) & (what_BT < self.mask_share + self.random_share)
        shown_BT = np.where(random_BT, (other_BT * self.text_size).astype(np.int64), shown_BT)
        changed = {
            "tokens": torch.from_numpy(np.where(chosen_BT, shown_BT, tokens_BT)),
            "labels": torch.from_numpy(np.where(chosen_BT, tokens_BT, IGNORE)),
        }
        if self.spare:
            changed["uniform"] = torch.from_numpy(uniform(keys_B, T, 3))
        return {**batch, **changed}

    def choose(self, batch: Batch, keys_B: Keys) -> Bool:
        """[B, T], the tokens to be told."""
        tokens_BT, segments_BT = batch["tokens"].numpy(), batch["segments"].numpy()
        B, T = tokens_BT.shape
        text_BT = (segments_BT > 0) & (tokens_BT != self.end_id)
        key_BT = uniform(keys_B, T, 0)
        if self.words is not None:
            key_BT = np.take_along_axis(key_BT, self._first_of_word(tokens_BT, segments_BT), 1)
        key_BT = np.where(text_BT, key_BT, 2.0)  # what is no text comes last
        count_B = text_BT.sum(1)
        budget_B1 = np.minimum(count_B, np.maximum(1, np.rint(self.rate * count_B)))[:, None]
        order_BT = key_BT.argsort(1, kind="stable")
        sorted_BT = np.take_along_axis(key_BT, order_BT, 1)
        # A word is taken as long as the tokens of those before it are fewer than the budget.
        same_BT = np.zeros((B, T), bool)
        same_BT[:, 1:] = sorted_BT[:, 1:] == sorted_BT[:, :-1]
        before_BT = np.maximum.accumulate(np.where(same_BT, 0, np.arange(T)), 1)
        chosen_BT = np.zeros((B, T), bool)
        np.put_along_axis(chosen_BT, order_BT, before_BT < budget_B1, 1)
        found_BT: Bool = chosen_BT & text_BT
        return found_BT

    def _first_of_word(self, tokens_BT: Int64, segments_BT: Int64) -> Int64:
        """Column of the first token of each token's word."""
        assert self.words is not None
        starts_BT = self.words.starts(tokens_BT.ravel()).reshape(tokens_BT.shape) | first_of_segment(segments_BT)
        starts_BT |= tokens_BT == self.end_id
        first: Int64 = np.maximum.accumulate(np.where(starts_BT, np.arange(tokens_BT.shape[1]), 0), 1)
        return first
