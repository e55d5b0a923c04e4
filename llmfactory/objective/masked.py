"""Masked language model (BERT, Devlin et al. 2019, section 3.1; dynamic masks: RoBERTa, Liu et al. 2019, section 4.1).

    loss = - sum_{t in M} log p(x_t | masked x) / |M|

M is 15 % of the tokens; in what the model reads, 80 % of them are the mask, 10 % a random token, 10 % what they were.
"""

from __future__ import annotations

from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.masked import Masked as Masking
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import Masked
from llmfactory.objective.tokens import TokenObjective


class MaskedObjective(TokenObjective):
    unit = "nats per masked token"

    def __init__(self, spec: Masked) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        spec = self.spec
        return Masking(
            vocabulary,
            seq_len,
            rate=spec.rate,
            mask_share=spec.mask_share,
            random_share=spec.random_share,
            whole_words=spec.whole_words,
            static=spec.static,
        )
