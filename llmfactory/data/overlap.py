"""Which held-out texts also stand in the training part: sequences of 13 words that both have (Brown et al. 2020, appendix C).

Only the held-out part is kept in memory, as sorted hashes; the training part streams by. Words that no held-out text has cannot
be part of a match and get the number 0. A text of fewer than 13 words is looked for as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

N = 13
WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
Words = NDArray[np.uint64]


Seen = dict[int, NDArray[np.bool_]]
"""By length of sequences: which of the held-out ones were met."""


class HeldOut:
    """The sequences of some held-out texts. Built in each process that looks through a piece of the training part."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        known = self._vocabulary
        numbers = [np.array([known.setdefault(w, len(known) + 1) for w in _words(text)], np.uint64) for text in texts]
        self._lengths = [min(N, len(words)) for words in numbers]
        self._own = [_hashes(words, length) for words, length in zip(numbers, self._lengths, strict=True)]
        self._known = {length: _unique(self._own, self._lengths, length) for length in sorted(set(self._lengths) - {0})}

    def look(self, training: Iterable[str]) -> Seen:
        """Which sequences stand in these texts."""
        seen = {length: np.zeros(len(hashes), bool) for length, hashes in self._known.items()}
        get = self._vocabulary.get
        for text in training:
            words = np.array([get(word, 0) for word in _words(text)], np.uint64)
            for length, hashes in self._known.items():
                found = _hashes(words, length)
                place = np.searchsorted(hashes, found).clip(max=len(hashes) - 1)
                seen[length][place[hashes[place] == found]] = True
        return seen

    def shares(self, seen: Seen) -> NDArray[np.float64]:
        """Of each text the share of its sequences that were met."""
        shares = np.zeros(len(self._own))
        for index, (length, hashes) in enumerate(zip(self._lengths, self._own, strict=True)):
            if length:
                shares[index] = seen[length][np.searchsorted(self._known[length], hashes)].mean()
        return shares


def overlap(held_out: Sequence[str], training: Iterable[str]) -> NDArray[np.float64]:
    """Of each held-out text the share of its 13-word sequences that stand in a training text, too."""
    known = HeldOut(held_out)
    return known.shares(known.look(training))


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _unique(own: Sequence[Words], lengths: Sequence[int], length: int) -> Words:
    return np.unique(np.concatenate([hashes for hashes, its in zip(own, lengths, strict=True) if its == length]))


def _hashes(words: Words, length: int) -> Words:
    """A hash of every sequence of that many words."""
    count = len(words) - length + 1
    if count <= 0 or length == 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total = (total ^ words[offset : offset + count]) * FACTOR
        total ^= total >> np.uint64(29)
    return total
