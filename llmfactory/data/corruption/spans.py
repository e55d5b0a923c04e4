"""Spans of each document go missing and are written by the decoder (T5, Raffel et al. 2020, section 3.1.4; UL2, Tay et al. 2022).

A document of n tokens loses N = round(r n) of them, in S = round(N / mu) spans of at least one token; kept and missing tokens are
each cut into S parts in a random way and alternate, a kept part first, as in the authors' code. Where a span was, the source has
the sentinel <k>; the target is <0> span 0 <1> span 1 ..., and both end with the end token:

    text     a b c d e f g h          source   a b <0> e f <1> end          target   <0> c d <1> g h end

The decoder reads the target shifted by one, an end token first. With S = 1 the missing part is the end of the text: UL2's S
denoiser, a prefix language model. Kinds of denoisers with a mode token have it before the source.

The raw length is the longest text that, as one document of the kind that keeps most, fits the source's row; the target's row has
room for what such a text loses at most, and a quarter more for the ends of further documents. Where many short documents need
more than that, the last ones of the row are shortened before anything is taken from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.core.batch import IGNORE
from llmfactory.core.special import Special
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.documents import Documents, Layout, documents, fitting
from llmfactory.data.corruption.ragged import owners, partition, running, sums, within
from llmfactory.data.corruption.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.corruption.chance import Float64
    from llmfactory.data.corruption.ragged import Bool
    from llmfactory.data.order import Words as Keys
    from llmfactory.data.pack.rows import Int64


@dataclass(frozen=True, slots=True)
class Denoiser:
    """One way of taking spans."""

    rate: float
    """Share of the tokens that go missing, r."""
    mean_span: float | None
    """Mean length of a span, mu; None: one span."""
    mode: Special | None = None
    """A token before the source that says which way it is."""

    def counts(self, length_N: Int64, most_spans: int) -> tuple[Int64, Int64]:
        """(N, S) of documents of these lengths; a document of one token is left out."""
        noise_N = np.rint(self.rate * length_N).astype(np.int64).clip(1, np.maximum(length_N - 1, 1))
        spans_N = np.ones_like(noise_N) if self.mean_span is None else np.rint(noise_N / self.mean_span).astype(np.int64)
        spans_N = spans_N.clip(1, np.minimum(most_spans, np.minimum(noise_N, np.maximum(length_N - noise_N, 1))))
        return np.where(length_N > 1, noise_N, 0), np.where(length_N > 1, spans_N, 0)


class Spans(Corruption):
    """`source` of M = `seq_len` tokens, target of T; each document takes one of the denoisers, all being equally likely."""

    def __init__(self, vocabulary: Vocabulary, seq_len: int, denoisers: Sequence[Denoiser], specials: Sequence[Special]) -> None:
        """`specials`: those of the objective, in its order; sentinels are the ones that are no denoiser's mode."""
        self.width, self.end_id = seq_len, vocabulary.end_id
        ids = dict(zip(specials, vocabulary.ids(specials), strict=True))
        modes = [denoiser.mode for denoiser in denoisers]
        self.mode_K = np.array([-1 if mode is None else ids[mode] for mode in modes], np.int64)
        self.sentinels = np.array([number for special, number in ids.items() if special not in modes], np.int64)
        longest = np.arange(int(seq_len / (1 - max(d.rate for d in denoisers))) + 2)
        counts = [denoiser.counts(longest, len(self.sentinels)) for denoiser in denoisers]
        self.noise_KN = np.stack([noise for noise, _ in counts])
        self.spans_KN = np.stack([spans for _, spans in counts])
        some_N = longest > 1
        has_mode_K1 = (self.mode_K >= 0)[:, None]
        self.source_KN = np.where(some_N, longest - self.noise_KN + self.spans_KN + 1 + has_mode_K1, 0)
        self.target_KN = np.where(some_N, self.noise_KN + self.spans_KN + 1, 0)
        text = int(np.flatnonzero(np.maximum(self.source_KN, self.target_KN).max(0) <= seq_len)[-1])
        self.raw_length = text + 1  # the end token that it begins with in the stream
        self.target_width = min(seq_len, -(-int(self.target_KN[:, : text + 1].max()) * 5 // 4))

    def __call__(self, batch: Batch, keys_B: Keys) -> Batch:
        text = documents(batch, keys_B, self.end_id)
        kind_P = (text.uniform_pieces(0) * len(self.mode_K)).astype(np.int64)
        needs = [(self.source_KN, self.width), (self.target_KN, self.target_width)]
        length_P = fitting(text.length_P, text.row_P, kind_P, needs)
        length_P = np.where(length_P > 1, length_P, 0)
        kind_P = kind_P[length_P > 0]
        text = text.shortened(length_P)
        missing_N = self.missing(text, self.noise_KN[kind_P, text.length_P], self.spans_KN[kind_P, text.length_P])
        return self._laid_out(text, missing_N, self.mode_K[kind_P], len(keys_B))

    def missing(self, text: Documents, noise_P: Int64, spans_P: Int64) -> Bool:
        """Which tokens go, [N]."""
        kept_S = partition(text.length_P - noise_P, spans_P, _first(text.uniform(1), text.length_P, text.length_P - noise_P))
        lost_S = partition(noise_P, spans_P, _first(text.uniform(2), text.length_P, noise_P))
        runs = np.stack([kept_S, lost_S], 1).ravel()
        return np.tile([False, True], len(kept_S)).repeat(runs)

    def _laid_out(self, text: Documents, missing_N: Bool, mode_P: Int64, rows: int) -> Batch:
        import torch

        piece_N, length_P = owners(text.length_P), text.length_P
        begins_N = missing_N.copy()
        begins_N[1:] &= ~missing_N[:-1]  # a piece begins with a kept token
        span_N = running(begins_N, length_P)  # number of the span that begins here
        kept_N = ~missing_N | begins_N
        shown_N = np.where(begins_N, self.sentinels[span_N.clip(max=len(self.sentinels) - 1)], text.tokens_N)

        has_mode_P = (mode_P >= 0).astype(np.int64)
        size_P = sums(kept_N, length_P) + 1 + has_mode_P
        source = Layout(size_P, text.row_P, rows, self.width)
        place_N = (source.start_P + has_mode_P)[piece_N] + running(kept_N, length_P)
        tokens = source.filled(self.end_id, place_N[kept_N], shown_N[kept_N]).ravel()
        tokens[source.start_P[mode_P >= 0]] = mode_P[mode_P >= 0]

        target_P = sums(missing_N, length_P) + sums(begins_N, length_P) + 1
        target = Layout(target_P, text.row_P, rows, self.target_width)
        # A token stands behind those before it and behind the sentinels up to its own span's.
        place_N = target.start_P[piece_N] + running(missing_N, length_P) + span_N + begins_N
        labels = target.filled(IGNORE, place_N[missing_N], text.tokens_N[missing_N]).ravel()
        labels[place_N[begins_N] - 1] = self.sentinels[span_N[begins_N]]
        labels[target.start_P + target_P - 1] = self.end_id
        found = {
            "source": tokens.reshape(source.shape),
            "source_positions": source.positions,
            "source_segments": source.segments,
            **written(labels.reshape(target.shape), target, self.end_id),
        }
        return {name: torch.from_numpy(field) for name, field in found.items()}


def written(labels_BT: Int64, target: Layout, end_id: int) -> dict[str, Int64]:
    """What a decoder reads so that it writes these labels: each document's shifted by one, behind an end token."""
    tokens_BT = np.full(labels_BT.shape, end_id, np.int64)
    tokens_BT[:, 1:] = np.where(target.positions[:, 1:] > 0, labels_BT[:, :-1], end_id)
    return {"tokens": tokens_BT, "labels": labels_BT, "positions": target.positions, "segments": target.segments}


def _first(values_N: Float64, length_P: Int64, count_P: Int64) -> Float64:
    """The first so many values of each piece."""
    return values_N[within(length_P) < count_P.repeat(length_P)]
