"""Vectors of words (Mikolov et al. 2013): one of each as itself, the embedding, and one as a neighbour, the head.

There is no forward graph to speak of: what is near what, the objective (skip-gram, CBOW) takes from the batch.
"""

from __future__ import annotations

from llmfactory.core.sharding import Parameter
from llmfactory.model.embedding.token import TokenEmbedding
from llmfactory.model.head.lm import OwnHead
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import EmbeddingModel
from llmfactory.model.steps import HIDDEN, Pass, Step


class WordVectors(Skeleton):
    """ids [B, T] or [B, T, C] -> vectors of the same shape and [D] more."""

    def __init__(self, spec: EmbeddingModel) -> None:
        super().__init__()
        self.spec: EmbeddingModel = spec
        self.embedding = TokenEmbedding(spec.vocab_size, spec.dim, spec.init_std)
        self.head = OwnHead(spec.vocab_size, spec.dim, spec.output_std, bias=False)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def steps(self) -> list[Step]:
        def look_up(going: Pass) -> None:
            going.carried[HIDDEN] = self.embedding(going.tokens, going.context)

        return [Step((self.embedding,), look_up)]

    def train_flops_per_token(self, seq_len: int) -> float:
        """None by the convention: vectors are looked up, and the few products of a pair are no product of matrices."""
        return 0.0
