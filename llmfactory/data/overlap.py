"""Which held-out texts also stand in the training part: sequences of 13 words that both have (Brown et al. 2020, appendix C).

Only the held-out part is kept in memory, as sorted hashes; the training part streams by. Words that no held-out text has cannot
be part of a match and get the number 0. A text of fewer than 13 words is looked for as a whole. A Chinese character or a kana is
a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.characters import UNSPACED
from llmfactory.data.ngrams import Numbers, hashes, places

N = 13
WORD, UNSPACED_TOO = re.compile(r"\w+"), re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
"""Of ASCII, and of other text, in which there may be words without spaces."""
Seen = dict[int, NDArray[np.bool_]]
"""By length of sequences: which of the held-out ones were met."""


class HeldOut:
    """The sequences of some held-out texts. Built in each process that looks through a piece of the training part."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        known = self._vocabulary
        numbers = [np.array([known.setdefault(w, len(known) + 1) for w in _words(text)], np.uint64) for text in texts]
        self._lengths = [min(N, len(words)) for words in numbers]
        self._own = [
            hashes(words, [length])[length] if length else words for words, length in zip(numbers, self._lengths, strict=True)
        ]
        self._known = {length: _unique(self._own, self._lengths, length) for length in sorted(set(self._lengths) - {0})}

    def look(self, training: Iterable[str]) -> Seen:
        """Which sequences stand in these texts."""
        seen = {length: np.zeros(len(known), bool) for length, known in self._known.items()}
        get = self._vocabulary.get
        for text in training:
            words = np.array([get(word, 0) for word in _words(text)], np.uint64)
            for length, found in hashes(words, self._known).items():
                place = places(found, self._known[length])
                seen[length][place[place >= 0]] = True
        return seen

    def shares(self, seen: Seen) -> NDArray[np.float64]:
        """Of each text the share of its sequences that were met."""
        shares = np.zeros(len(self._own))
        for index, (length, own) in enumerate(zip(self._lengths, self._own, strict=True)):
            if length:
                shares[index] = seen[length][places(own, self._known[length])].mean()
        return shares


def overlap(held_out: Sequence[str], training: Iterable[str]) -> NDArray[np.float64]:
    """Of each held-out text the share of its 13-word sequences that stand in a training text, too."""
    known = HeldOut(held_out)
    return known.shares(known.look(training))


def _words(text: str) -> list[str]:
    return (WORD if text.isascii() else UNSPACED_TOO).findall(text.lower())


def _unique(own: Sequence[Numbers], lengths: Sequence[int], length: int) -> Numbers:
    return np.unique(np.concatenate([found for found, its in zip(own, lengths, strict=True) if its == length]))
