"""Tables of n-grams of a text that can be counted by eye; what is made of them, test_kneser_ney.py."""

from __future__ import annotations

import numpy as np

from llmfactory.model.ngram_counts import count

V = 10


def test_a_text_counted_by_eye() -> None:
    """The text 0 1 2 1 2 3, whose first token is only a history: grams (1) (2) (1) (2) (3), (0 1) (1 2) (2 1) (1 2) (2 3)."""
    histories = np.array([[-1, 0], [0, 1], [1, 2], [2, 1], [1, 2]])
    labels = np.array([1, 2, 1, 2, 3])
    single, pairs, triples = count(histories, labels, V)
    # (1) stands behind 0 and 2, (2) behind 1, (3) behind 2.
    assert dict(zip(single.grams.tolist(), single.counts.tolist(), strict=True)) == {1: 2, 2: 1, 3: 1}
    assert (single.contexts.tolist(), single.totals.tolist(), single.kinds.tolist()) == ([0], [4], [[2, 1, 0]])
    assert single.counts_of_counts.tolist() == [2, 1, 0, 0]
    # Contexts 0, 1, 2 are nodes 0, 1, 2. (0 1) begins the text: its occurrence counts. (1 2) stands behind 0 and 2, (2 1) and
    # (2 3) behind 1.
    assert pairs.contexts.tolist() == [0, 1, 2]
    assert dict(zip(pairs.grams.tolist(), pairs.counts.tolist(), strict=True)) == {1: 1, 12: 2, 21: 1, 23: 1}
    assert (pairs.totals.tolist(), pairs.kinds.tolist()) == ([1, 2, 2], [[1, 0, 0], [0, 1, 0], [2, 0, 0]])
    # Contexts of two: (1 2) is node 2's with the older 1: key 21; (0 1) and (2 1): keys 10 and 12. The longest are occurrences.
    assert triples.contexts.tolist() == [10, 12, 21]
    assert dict(zip(triples.grams.tolist(), triples.counts.tolist(), strict=True)) == {2: 1, 12: 1, 21: 1, 23: 1}
    assert triples.counts_of_counts.tolist() == [4, 0, 0, 0]


def test_occurrences_of_the_longest() -> None:
    single, pairs = count(np.array([[1], [1], [1], [2]]), np.array([4, 4, 5, 4]), V)
    assert dict(zip(pairs.grams.tolist(), pairs.counts.tolist(), strict=True)) == {4: 2, 5: 1, 14: 1}
    assert pairs.totals.tolist() == [3, 1]
    assert dict(zip(single.grams.tolist(), single.counts.tolist(), strict=True)) == {4: 2, 5: 1}
