"""Mixture of denoisers (UL2, Tay et al. 2022, section 3.1 and table 1): span corruption of seven kinds, told apart by a mode token.

    loss = - sum_t log p(y_t | y_<t, mode, source) / |y|

R (regular): spans of 3 or 8 tokens on average, 15 % missing. S (sequential): the last 25 % of the text are missing. X (extreme):
half of the text in spans of 3, 8 or 64, or 15 % in spans of 64. Each document takes one of the seven, all equally likely.
"""

from __future__ import annotations

from llmfactory.core.special import EXTREME, REGULAR, SEQUENTIAL
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.spans import Denoiser, Spans
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import Ul2
from llmfactory.objective.tokens import TokenObjective

DENOISERS = (
    Denoiser(0.15, 3.0, REGULAR),
    Denoiser(0.15, 8.0, REGULAR),
    Denoiser(0.25, None, SEQUENTIAL),
    Denoiser(0.5, 3.0, EXTREME),
    Denoiser(0.5, 8.0, EXTREME),
    Denoiser(0.15, 64.0, EXTREME),
    Denoiser(0.5, 64.0, EXTREME),
)


class Ul2Objective(TokenObjective):
    unit = "nats per target token"
    sparse = False

    def __init__(self, spec: Ul2) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        return Spans(vocabulary, seq_len, DENOISERS, self.spec.specials())
