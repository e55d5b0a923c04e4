"""Autoregressive blank infilling (GLM, Du et al. 2022, equations 1 and 2): missing spans are written one after the other, in random
order, by the model that reads the text around them.

    loss = - sum_i sum_j log p(s_{z_i, j} | corrupted x, s_{z_1}, ..., s_{z_i-1}, s_{z_i, <j}) / number of tokens and span ends

z is a random order of the spans. Each token has two positions: its span's place in the text, and its place in the span.
"""

from __future__ import annotations

from llmfactory.data.corruption.blank_infilling import BlankInfilling as Blanks
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import BlankInfilling
from llmfactory.objective.tokens import TokenObjective


class BlankInfillingObjective(TokenObjective):
    unit = "nats per token of the blanks"

    def __init__(self, spec: BlankInfilling) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        spec = self.spec
        return Blanks(
            vocabulary,
            seq_len,
            rate=spec.rate,
            mean_span=spec.mean_span,
            sentences=spec.sentence_share,
            rest=spec.document_share,
        )
