"""Spans of Poisson length in documents: how long they are, and where they stand (BART, GLM)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.data.corruption.ragged import owners, ranks, running, starts, sums, within

if TYPE_CHECKING:
    from llmfactory.data.corruption.chance import Float64
    from llmfactory.data.corruption.ragged import Bool
    from llmfactory.data.pack.rows import Int64


def poisson(uniform_N: Float64, mean: float) -> Int64:
    """Numbers with P(k) = mean^k e^-mean / k!, by inversion."""
    terms = [math.exp(-mean)]
    while sum(terms) < 1 - 1e-15 and len(terms) < 50 + 10 * mean:
        terms.append(terms[-1] * mean / len(terms))
    found: Int64 = np.searchsorted(np.cumsum(terms), uniform_N, side="right")
    return found


def poisson_spans(
    uniform_N: Float64, length_P: Int64, noise_P: Int64, mean: float, most_P: Int64 | None = None
) -> tuple[Int64, Int64, Int64]:
    """Lengths drawn until they reach `noise_P` in each piece, the last one cut to it.

    Returns the lengths that are not 0, [S], and by piece how many of them and how many zeros were drawn. A piece has as many draws
    as tokens at most. Spans that could not stand apart (a kept token between any two), or are more than `most_P`, are joined to the
    last one that may be.
    """
    drawn_N = poisson(uniform_N, mean)
    drawn_N = np.where(within(length_P) == (length_P - 1).repeat(length_P), length_P.repeat(length_P), drawn_N)
    before_N = running(drawn_N, length_P)
    noise_N = noise_P.repeat(length_P)
    used_N = before_N < noise_N
    cut_N = np.where(used_N, np.minimum(drawn_N, noise_N - before_N), 0)
    empty_P = sums(used_N & (drawn_N == 0), length_P)
    some_N = cut_N > 0
    apart_P = length_P - noise_P + 1
    most_P = apart_P if most_P is None else np.minimum(apart_P, most_P)
    number_N = np.minimum(
        running(some_N, length_P), most_P.repeat(length_P) - 1
    )  # of the span, those beyond the last joined to it
    spans_P = np.minimum(sums(some_N, length_P), most_P)
    slot_N = (starts(spans_P)[owners(length_P)] + number_N)[some_N]
    length_S = np.bincount(slot_N, weights=cut_N[some_N], minlength=int(spans_P.sum())).astype(np.int64)
    return length_S, spans_P, empty_P


def spread(length_S: Int64, spans_P: Int64, length_P: Int64, uniform_N: Float64) -> Bool:
    """Put the spans, in their order, at random places of the pieces, at least one token between two; [N], True within a span."""
    noise_P = np.bincount(owners(spans_P), weights=length_S, minlength=len(spans_P)).astype(np.int64)
    # A span goes into one of the gaps before, between and behind the tokens that stay, no two into the same.
    gaps_P = np.where(spans_P > 0, length_P - noise_P + 1, 0)
    key_G = uniform_N[within(length_P) < gaps_P.repeat(length_P)]
    gap_S = within(gaps_P)[ranks(key_G, gaps_P) < spans_P.repeat(gaps_P)]
    start_S = starts(length_P).repeat(spans_P) + gap_S + running(length_S, spans_P)
    edges = np.zeros(len(uniform_N) + 1, np.int64)
    np.add.at(edges, start_S, 1)
    np.add.at(edges, start_S + length_S, -1)
    return edges[:-1].cumsum() > 0
