"""Denoising (BART, Lewis et al. 2020, section 2.2): the encoder reads a damaged text, the decoder writes it as it was.

    loss = - sum_t log p(x_t | x_<t, damaged x) / |x|

30 % of the tokens are missing, in spans of Poisson(3) tokens, each of which is one mask; sentences stand in random order.
"""

from __future__ import annotations

from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.denoising import Denoising as Damage
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.objective.spec import Denoising
from llmfactory.objective.tokens import TokenObjective


class DenoisingObjective(TokenObjective):
    unit = "nats per token of the restored text"
    sparse = False

    def __init__(self, spec: Denoising) -> None:
        self.spec = spec

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        spec = self.spec
        return Damage(
            vocabulary,
            seq_len,
            rate=spec.rate,
            mean_span=spec.mean_span,
            permute_sentences=spec.permute_sentences,
            rotate=spec.rotate,
        )
