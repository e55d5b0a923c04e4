"""Prefix language model (Liu et al. 2018; Raffel et al. 2020, section 3.2.2; Dong et al. 2019): the beginning of a text is read in
both directions, the rest is predicted token by token.

    loss = - sum_{t >= c} log p(x_t | x_<c, x_c..t-1) / number of such t, c ~ uniform, drawn for each document
"""

from __future__ import annotations

from llmfactory.core.context import Reading
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.prefix import Prefix as Cut
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import Prefix
from llmfactory.objective.tokens import TokenObjective


class PrefixObjective(TokenObjective):
    unit = "nats per token after the prefix"
    continues = True
    reading = Reading.both

    def __init__(self, spec: Prefix) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        return Cut(seq_len)
