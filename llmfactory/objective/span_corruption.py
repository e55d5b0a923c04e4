"""Span corruption (T5, Raffel et al. 2020, section 3.1.4): the encoder reads a text with missing spans, the decoder writes them.

    loss = - sum_t log p(y_t | y_<t, source) / |y|,  y = <0> span 0 <1> span 1 ... end

15 % of the tokens are missing, in spans of 3 on average; y holds their sentinels too.
"""

from __future__ import annotations

from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.spans import Denoiser, Spans
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import SpanCorruption
from llmfactory.objective.tokens import TokenObjective


class SpanCorruptionObjective(TokenObjective):
    unit = "nats per target token"
    sparse = False

    def __init__(self, spec: SpanCorruption) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        denoiser = Denoiser(self.spec.rate, self.spec.mean_span)
        return Spans(vocabulary, seq_len, [denoiser], self.spec.specials())
