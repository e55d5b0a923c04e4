"""How many samples of each source are due when n of them have been drawn: W(n), by pieces along which weights stand still.

A linear change of weights is cut into many such pieces. A source that has been read as often as it may be is left out from there
on, and its share goes to the others in proportion to their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.mix.spec import Knot

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
RAMP = 512
"""Pieces of a linear change: weights are nowhere further from the line than a thousandth of the change."""
UNIT = 2.0**40
"""Shares are whole numbers of 1 / UNIT, so that the last bit of a power, which differs between machines, is without effect."""


class Course:
    """`begin_K` [pieces]: numbers of samples at which the pieces begin; `due_KS`: W there; `share_KS`: its slope from there on."""

    def __init__(self, pieces: Sequence[tuple[float, Float64]], most_S: Float64) -> None:
        """`pieces`: (number of samples, weights from there on), ascending from 0; `most_S`: samples that each source can give."""
        begin, due, shares = [], [], []
        done, at = np.zeros(len(most_S)), 0.0
        for (start, weights_S), (stop, _) in zip(pieces, [*pieces[1:], (np.inf, None)], strict=True):
            at = max(at, start)
            while at < stop:
                open_S = np.where(done < most_S, weights_S, 0.0)
                if not open_S.any():  # of those that have some left, none has a weight here: all of them are drawn alike
                    open_S = (done < most_S).astype(np.float64)
                if not open_S.any():
                    break
                share_S = _whole(open_S / open_S.sum())
                begin.append(at)
                due.append(done)
                shares.append(share_S)
                with np.errstate(divide="ignore", invalid="ignore"):
                    left_S = np.where(share_S > 0, (most_S - done) / share_S, np.inf)
                length = min(stop - at, float(left_S.min()))
                if not np.isfinite(length):
                    at = np.inf
                    break
                done = np.where(left_S <= length, most_S, done + share_S * length)
                at += length
        self.begin_K, self.due_KS, self.share_KS = np.array(begin), np.array(due), np.array(shares)
        self.end = at
        """Number of samples after which every source is used up; infinite where one is not limited."""

    def due(self, samples: Int64) -> Int64:
        """[N, S]: of the first so many samples, those of each source, to the nearest whole number; never fewer for more."""
        place_N = np.minimum(samples, self.end)
        piece_N = self.begin_K.searchsorted(place_N, side="right") - 1
        exact_NS = self.due_KS[piece_N] + self.share_KS[piece_N] * (place_N - self.begin_K[piece_N])[:, None]
        due_NS: Int64 = np.floor(exact_NS + 0.5).astype(np.int64)
        return due_NS


def pieces(
    knots: Sequence[Knot], names: Sequence[str], row_tokens: Mapping[str, float], samples: int
) -> list[tuple[float, Float64]]:
    """Weights of rows by number of samples, from weights of tokens by share of a run of `samples`.

    `row_tokens`: tokens of a row of each source, padding not counted.
    """
    tokens_S = np.array([row_tokens[name] for name in names])

    def rows(weights_S: Float64) -> Float64:
        share_S: Float64 = weights_S / weights_S.sum() / tokens_S
        share_S /= share_S.sum()
        return share_S

    places = [(place * samples, _shares(weights, names)) for place, weights in knots]
    found = [(places[0][0], rows(places[0][1]))]
    for (start, before_S), (stop, after_S) in pairwise(places):
        steps = min(RAMP, int(stop - start)) if (before_S != after_S).any() else 0
        for step in range(steps):
            share = (step + 0.5) / steps
            found.append((start + (stop - start) * step / steps, rows(before_S * (1 - share) + after_S * share)))
        found.append((stop, rows(after_S)))
    return found


def _shares(weights: Mapping[str, float], names: Sequence[str]) -> Float64:
    found: Float64 = np.array([weights[name] for name in names], np.float64)
    found /= found.sum()
    return found


def _whole(share_S: Float64) -> Float64:
    """Shares as whole numbers of 1 / UNIT that add up to 1."""
    units_S: Float64 = np.rint(share_S * UNIT)
    units_S[units_S.argmax()] += UNIT - units_S.sum()
    units_S /= UNIT
    return units_S
