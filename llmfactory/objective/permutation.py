"""Permutation language model (XLNet, Yang et al. 2019, equation 5): the last tokens of a random order are predicted.

    loss = - sum_{t > c} log p(x_{z_t} | x_{z_1}, ..., x_{z_t-1}) / number of such t, |z| / (|z| - c) = K

z is a random order of a document's tokens; one of K of them is predicted, from the content of those before it in z and from
nothing but its own place.
"""

from __future__ import annotations

from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.permutation import Permutation as Order
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import Permutation
from llmfactory.objective.tokens import TokenObjective


class PermutationObjective(TokenObjective):
    unit = "nats per predicted token"

    def __init__(self, spec: Permutation) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        return Order(seq_len, vocabulary.end_id, 1 / self.spec.one_in)
