"""A damaged text is written again as it was (BART, Lewis et al. 2020, section 2.2).

Of a document of n tokens N = round(r n) go missing in spans whose lengths are drawn from Poisson(lambda) until they reach N (the
last is cut); each becomes a single mask, so that the decoder must also tell how many tokens are missing. A span of length 0 is a
mask between two tokens. Before that, the document's sentences are put into random order, and after it, it may be rotated to begin
at a random token. The decoder writes the whole text; an end token ends source and target.

Masks are never adjacent but for those of empty spans, of which a document gets as many as leave it no longer than it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.core.special import MASK
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import Documents, Layout, documents, fitting
from llmfactory.data.corruption.poisson import poisson_spans, spread
from llmfactory.data.corruption.ragged import owners, ranks, starts, sums, within
from llmfactory.data.corruption.spans import written
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.words import words

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.order import Words as Keys
    from llmfactory.data.pack.rows import Int64


class Denoising(Corruption):
    """`source` [B, T] is the damaged text, the labels are the text, [B, T]."""

    def __init__(
        self, vocabulary: Vocabulary, seq_len: int, *, rate: float, mean_span: float, permute_sentences: bool, rotate: float
    ) -> None:
        self.raw_length, self.end_id = seq_len, vocabulary.end_id
        self.rate, self.mean_span, self.rotate = rate, mean_span, rotate
        (self.mask_id,) = vocabulary.ids([MASK])
        self.words = words(vocabulary.tokenizer) if permute_sentences else None
        lengths = np.arange(seq_len + 2)
        self.size_1N = np.where(lengths > 0, lengths + 1, 0)[None]  # and an end

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        import torch

        text = documents(batch, keys_B, self.end_id)
        none_P = np.zeros_like(text.length_P)
        text = text.shortened(fitting(text.length_P, text.row_P, none_P, [(self.size_1N, self.raw_length)]))
        target = Layout(text.length_P + 1, text.row_P, len(keys_B), self.raw_length)
        labels = target.filled(self.end_id, target.start_P[owners(text.length_P)] + within(text.length_P), text.tokens_N)
        labels = np.where(target.segments > 0, labels, IGNORE)

        tokens_E, length_P = self._rotated(text, *self._infilled(text, self._reordered(text)))
        source = Layout(length_P + 1, text.row_P, len(keys_B), self.raw_length)
        place_E = source.start_P[owners(length_P)] + within(length_P)
        found = {
            "source": source.filled(self.end_id, place_E, tokens_E),
            "source_positions": source.positions,
            "source_segments": source.segments,
            **written(labels, target, self.end_id),
        }
        return {name: torch.from_numpy(field) for name, field in found.items()}

    def _reordered(self, text: Documents) -> Int64:
        """The tokens with the sentences of each document in random order."""
        if self.words is None or not len(text.tokens_N):
            return text.tokens_N
        first_N = within(text.length_P) == 0
        first_N[1:] |= self.words.stops_V[text.tokens_N[:-1]]
        key_N = text.uniform(0)[np.flatnonzero(first_N)][first_N.cumsum() - 1]
        return text.tokens_N[np.lexsort((np.arange(len(key_N)), key_N, owners(text.length_P)))]

    def _infilled(self, text: Documents, tokens_N: Int64) -> tuple[Int64, Int64]:
        """(tokens with masks, their number by document)."""
        length_P = text.length_P
        noise_P = np.rint(self.rate * length_P).astype(np.int64)
        length_S, spans_P, empty_P = poisson_spans(text.uniform(1), length_P, noise_P, self.mean_span)
        missing_N = spread(length_S, spans_P, length_P, text.uniform(2))
        begins_N = missing_N & ~np.concatenate([[False], missing_N[:-1]])[: len(missing_N)]
        begins_N |= missing_N & (within(length_P) == 0)
        kept_N = ~missing_N | begins_N
        shown_N = np.where(begins_N, self.mask_id, tokens_N)
        # A mask more before random tokens that are kept, as many as there are empty spans.
        room_P = np.minimum(sums(~missing_N, length_P), sums(missing_N, length_P) - sums(begins_N, length_P))
        key_N = np.where(missing_N, 2.0, text.uniform(3))
        inserted_N = ranks(key_N, length_P) < np.minimum(empty_P, room_P).repeat(length_P)
        copies_N = kept_N.astype(np.int64) + inserted_N
        tokens_E = shown_N.repeat(copies_N)
        first_E = starts(copies_N)[inserted_N]
        tokens_E[first_E] = self.mask_id
        return tokens_E, sums(copies_N, length_P)

    def _rotated(self, text: Documents, tokens_E: Int64, length_P: Int64) -> tuple[Int64, Int64]:
        """Some documents begin at a random token and go on at their beginning."""
        if not self.rotate or not len(length_P):
            return tokens_E, length_P
        drawn_P = text.uniform_pieces(4)
        shift_P = np.where(drawn_P < self.rotate, (drawn_P / self.rotate * length_P).astype(np.int64), 0)
        begin_E, size_E = starts(length_P).repeat(length_P), length_P.repeat(length_P)
        return tokens_E[begin_E + (within(length_P) + shift_P.repeat(length_P)) % size_E], length_P
