"""Counting n-grams into sorted tables, for modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3).

A context of length k is a node: its key is (node of its last k - 1 tokens) * V + (its oldest token); the empty context is node
0. A gram is a context and the token after it; its key is node * V + token. Keys are unique numbers below nodes * V, sorted, so
that a node is the place of its key, and a search finds either.

The highest order counts occurrences. A lower order counts the different tokens that a gram was seen behind, and besides each
occurrence at the beginning of a text, behind which nothing can stand (as SRILM and KenLM count grams that begin with <s>).

Legend: N places of a text, G grams of an order, C contexts of it, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """The grams with a context of one length."""

    contexts: Int64
    """[C], keys."""
    totals: Int64
    """[C], counts of all grams of the context together."""
    kinds: Int64
    """[C, 3]: how many of its grams have the count 1, 2, and 3 or more."""
    grams: Int64
    """[G], keys."""
    counts: Int64
    """[G]."""
    counts_of_counts: Int64
    """[4]: how many grams have the count 1, 2, 3 and 4; the discounts follow from them."""


def count(histories_NM: Int64, labels_N: Int64, vocab_size: int) -> list[Table]:
    """Tables of contexts of length 0 to M. `histories_NM`: the last M tokens before each label, oldest first, -1 where there is
    none."""
    length_N = (histories_NM >= 0).sum(1)
    node_N = np.zeros(len(labels_N), np.int64)
    contexts, grams, occurrences, beginnings = [], [], [], []
    for length in range(histories_NM.shape[1] + 1):
        here_N = length_N >= length
        if length == 0:
            keys = np.zeros(1, np.int64)
        else:
            key_N = node_N * vocab_size + histories_NM[:, -length]
            keys, node_N[here_N] = np.unique(key_N[here_N], return_inverse=True)
        gram_N = (node_N * vocab_size + labels_N)[here_N]
        found, place_N, number = np.unique(gram_N, return_inverse=True, return_counts=True)
        contexts.append(keys)
        grams.append(found)
        occurrences.append(number)
        beginnings.append(np.bincount(place_N[(length_N == length)[here_N]], minlength=len(found)))
    tables = [_table(contexts[-1], grams[-1], occurrences[-1], vocab_size)]
    for length in reversed(range(histories_NM.shape[1])):
        node_G, token_G = np.divmod(grams[length + 1], vocab_size)
        shorter_G = contexts[length + 1][node_G] // vocab_size * vocab_size + token_G  # without its oldest token
        behind = np.bincount(np.searchsorted(grams[length], shorter_G), minlength=len(grams[length]))
        tables.insert(0, _table(contexts[length], grams[length], behind + beginnings[length], vocab_size))
    return tables


def _table(contexts: Int64, grams: Int64, counts: Int64, vocab_size: int) -> Table:
    node_G, kind_G = grams // vocab_size, np.minimum(counts, 3) - 1
    totals = np.zeros(len(contexts), np.int64)
    np.add.at(totals, node_G, counts)
    kinds = np.zeros((len(contexts), 3), np.int64)
    np.add.at(kinds, (node_G, kind_G), 1)
    return Table(contexts, totals, kinds, grams, counts.astype(np.int64), np.bincount(counts, minlength=5)[1:5].astype(np.int64))
