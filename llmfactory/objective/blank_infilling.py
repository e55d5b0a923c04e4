"""Autoregressive blank infilling (GLM, Du et al. 2022, equations 1 and 2): missing spans are written one after the other, in random
order, by the model that reads the text around them.

    loss = - sum_i sum_j log p(s_{z_i, j} | corrupted x, s_{z_1}, ..., s_{z_i-1}, s_{z_i, <j}) / number of tokens and span ends

z is a random order of the spans. Each token has two positions: its span's place in the text, and its place in the span.
"""

from __future__ import annotations

from llmfactory.core.context import Reading
from llmfactory.core.special import DOCUMENT_MASK, END_OF_SPAN, START_OF_SPAN
from llmfactory.data.corruption.blank_infilling import SPECIALS
from llmfactory.data.corruption.blank_infilling import BlankInfilling as Blanks
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import BlankInfilling
from llmfactory.objective.tokens import TokenObjective


class BlankInfillingObjective(TokenObjective):
    unit = "nats per token of the blanks"
    continues = True
    reading = Reading.blank

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

    def prompt(self, tokens: list[int], vocabulary: Vocabulary) -> tuple[list[int], int]:
        """The rest of the text is missing: [gMASK] stands for it, and <sop> begins it."""
        ids = dict(zip(SPECIALS, vocabulary.ids(SPECIALS), strict=True))
        return [*tokens, ids[DOCUMENT_MASK], ids[START_OF_SPAN]], ids[END_OF_SPAN]
