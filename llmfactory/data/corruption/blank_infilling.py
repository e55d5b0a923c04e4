"""Blanks in a text, filled one after the other (GLM, Du et al. 2022, sections 2.1 and 2.2).

Spans of a document are each replaced by one mask token: that is part A. Part B holds the spans in random order, each behind a
start token and predicting an end token after its last one. A sees itself in both directions (`prefix` 1); B sees A, and what
stands before it in B. Every token has two positions: in A its place, and 0; in B the place of its span's mask in A, and 1, 2, ...
within the span.

    text    a b c d e f     A  end a [MASK] d [MASK] f    B  <sop> e <sop> b c      labels of B  e <eop> b c <eop>
    positions                0   1   2      3   4    5         4    4   2   2 2
                             0   0   0      0   0    0         1    2   1   2 3

Three kinds of blanks, one for each document: short spans (lengths from Poisson(mu) until N = round(r n) tokens are reached); whole
sentences in random order until that many ([sMASK]; a document of one sentence gets short spans); one span up to the end, of 50 to 100 % of the text ([gMASK]).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.core.special import DOCUMENT_MASK, END_OF_SPAN, MASK, SENTENCE_MASK, START_OF_SPAN
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import Documents, Layout, documents, fitting
from llmfactory.data.corruption.poisson import poisson_spans, spread
from llmfactory.data.corruption.ragged import owners, ranks, running, starts, sums, within
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.words import words

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.corruption.ragged import Bool
    from llmfactory.data.order import Words as Keys
    from llmfactory.data.pack.rows import Int64

SPECIALS = (MASK, SENTENCE_MASK, DOCUMENT_MASK, START_OF_SPAN, END_OF_SPAN)
SHORT, BY_SENTENCE, WHOLE = range(3)


class BlankInfilling(Corruption):
    """One row of part A and part B for each document."""

    def __init__(
        self, vocabulary: Vocabulary, seq_len: int, *, rate: float, mean_span: float, sentences: float, rest: float
    ) -> None:
        """`sentences` and `rest`: shares of the documents with the second and the third kind of blanks."""
        self.width, self.end_id = seq_len, vocabulary.end_id
        self.rate, self.mean_span, self.sentences, self.rest = rate, mean_span, sentences, rest
        *masks, self.start_id, self.stop_id = vocabulary.ids(SPECIALS)
        self.masks = np.array(masks, np.int64)
        self.words = words(vocabulary.tokenizer) if sentences else None
        # A text of n tokens takes 1 + n + 2 S places; S is at most what is usual and a quarter, and two.
        lengths = np.arange(seq_len)
        self.most_N = np.minimum(self.noise(lengths), (1.25 * rate * lengths / mean_span).astype(np.int64) + 2)
        self.size_1N = np.where(lengths > 1, 1 + lengths + 2 * self.most_N, 0)[None]
        self.raw_length = 1 + int(np.flatnonzero(self.size_1N[0] <= seq_len)[-1])

    def noise(self, length_P: Int64) -> Int64:
        """Tokens of short spans."""
        wanted = np.rint(self.rate * length_P).astype(np.int64)
        return np.where(length_P > 1, wanted.clip(1, np.maximum(length_P - 1, 1)), 0)

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        text = documents(batch, keys_B, self.end_id)
        none_P = np.zeros_like(text.length_P)
        fits_P = fitting(text.length_P, text.row_P, none_P, [(self.size_1N, self.width)])
        text = text.shortened(np.where(fits_P > 1, fits_P, 0))
        drawn_P = text.uniform_pieces(0)
        kind_P = np.where(drawn_P < self.rest, WHOLE, np.where(drawn_P < self.rest + self.sentences, BY_SENTENCE, SHORT))
        span_N, sentences_N = self._short(text), self._by_sentence(text)
        one_sentence_P = sums(sentences_N >= 0, text.length_P) == 0
        kind_P = np.where((kind_P == BY_SENTENCE) & one_sentence_P, SHORT, kind_P)
        for kind, chosen_N in ((BY_SENTENCE, sentences_N), (WHOLE, self._whole(text))):
            span_N = np.where((kind_P == kind).repeat(text.length_P), chosen_N, span_N)
        return self._laid_out(text, span_N >= 0, span_N, kind_P, len(keys_B))

    # ---- which tokens go: for each the place of its span's first token in the document, -1 where it stays

    def _short(self, text: Documents) -> Int64:
        length_P = text.length_P
        length_S, spans_P, _ = poisson_spans(
            text.uniform(1), length_P, self.noise(length_P), self.mean_span, self.most_N[length_P]
        )
        return _runs(spread(length_S, spans_P, length_P, text.uniform(2)), length_P)

    def _by_sentence(self, text: Documents) -> Int64:
        if self.words is None:
            return np.full(len(text.tokens_N), -1)
        place_N = within(text.length_P)
        first_N = place_N == 0
        first_N[1:] |= self.words.stops_V[text.tokens_N[:-1]]
        sentence_N = first_N.cumsum() - 1
        begin_N = np.flatnonzero(first_N)[sentence_N] if len(first_N) else place_N
        size_N = np.bincount(sentence_N)[sentence_N] if len(first_N) else place_N
        # Sentences in random order are taken until their tokens are as many as wanted, never all of the document.
        rank_N = ranks(text.uniform(3)[begin_N], text.length_P)
        order = starts(text.length_P)[owners(text.length_P)] + rank_N
        size, begin = np.empty_like(rank_N), np.empty_like(rank_N)
        size[order], begin[order] = size_N, begin_N
        leads = np.ones(len(begin), bool)
        leads[1:] = begin[1:] != begin[:-1]
        before = np.maximum.accumulate(np.where(leads, np.arange(len(begin)), 0)) - starts(text.length_P)[owners(text.length_P)]
        number = running(leads, text.length_P) + leads - 1
        taken = (before < self.noise(text.length_P).repeat(text.length_P)) & (before + size < text.length_P.repeat(text.length_P))
        taken &= number < self.most_N[text.length_P].repeat(text.length_P)
        return np.where(taken[order], place_N[begin_N], -1)

    def _whole(self, text: Documents) -> Int64:
        """The end of the document, from a place in its first half on."""
        place_N = within(text.length_P)
        start_P = (text.uniform_pieces(4) * (text.length_P // 2 + 1)).astype(np.int64)
        start_N = start_P.repeat(text.length_P)
        return np.where(place_N >= start_N, start_N, -1)

    # ---- rows

    def _laid_out(self, text: Documents, missing_N: Bool, span_N: Int64, kind_P: Int64, rows: int) -> Batch:
        import torch

        length_P, place_N, piece_N = text.length_P, within(text.length_P), owners(text.length_P)
        begins_N = missing_N & (span_N == place_N)
        first_S = np.flatnonzero(begins_N)  # the spans, in the order of the text
        spans_P = sums(begins_N, length_P)
        number_N = (begins_N.cumsum() - 1).clip(min=0)
        length_S = np.bincount(number_N[missing_N], minlength=len(first_S)).astype(np.int64)
        kept_N = ~missing_N | begins_N
        front_P = 1 + sums(kept_N, length_P)
        size_P = front_P + sums(missing_N, length_P) + spans_P
        layout = Layout(size_P, text.row_P, rows, self.width)

        # Part A: an end token, then what stays, with masks.
        front_N = 1 + running(kept_N, length_P)  # place in A
        at_N = layout.start_P[piece_N] + front_N
        shown_N = np.where(begins_N, self.masks[kind_P][piece_N], text.tokens_N)
        tokens = layout.filled(self.end_id, at_N[kept_N], shown_N[kept_N]).ravel()

        # Part B: the spans by a random order, each one place longer than its text.
        rank_S = ranks(text.uniform(5)[first_S], spans_P)
        order = starts(spans_P)[owners(spans_P)] + rank_S
        longer = np.empty_like(length_S)
        longer[order] = length_S + 1
        begin_S = (layout.start_P + front_P)[piece_N[first_S]] + running(longer, spans_P)[order]
        tokens[begin_S] = self.start_id
        inside_N = place_N - span_N
        at_M = (begin_S[number_N] + 1 + inside_N)[missing_N]
        tokens[at_M] = text.tokens_N[missing_N]
        labels = np.full(len(tokens), IGNORE, np.int64)
        labels[at_M - 1] = text.tokens_N[missing_N]
        labels[begin_S + length_S] = self.stop_id

        place = layout.positions.ravel().copy()
        second = np.zeros(len(tokens), np.int64)
        back = begin_S.repeat(length_S + 1) + within(length_S + 1)
        place[back] = front_N[first_S].repeat(length_S + 1)
        second[back] = 1 + within(length_S + 1)
        found = {
            "tokens": tokens.reshape(layout.shape),
            "labels": labels.reshape(layout.shape),
            "segments": layout.segments,
            "positions": np.stack([place.reshape(layout.shape), second.reshape(layout.shape)], 1),
            "prefix": ((layout.segments > 0) & (second.reshape(layout.shape) == 0)).astype(np.int64),
        }
        return {name: torch.from_numpy(field) for name, field in found.items()}


def _runs(missing_N: Bool, length_P: Int64) -> Int64:
    """For each missing token the place of the first one of its run in the document, else -1."""
    place_N = within(length_P)
    begins_N = missing_N.copy()
    begins_N[1:] &= ~missing_N[:-1]
    begins_N |= missing_N & (place_N == 0)
    first_N = np.maximum.accumulate(np.where(begins_N, np.arange(len(place_N)), 0))
    return np.where(missing_N, place_N[first_N] if len(place_N) else place_N, -1)
