"""A stack of causal self-attention blocks (Radford et al. 2018): GPT, LLaMA and their kin."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import DecoderOnly
from llmfactory.model.tower import Tower, frame_of


class Decoder(Tower, Skeleton):
    """tokens [B, T] -> hidden [B, T, D], normalized."""

    def __init__(self, spec: DecoderOnly) -> None:
        nn.Module.__init__(self)
        self.spec: DecoderOnly = spec
        frame = frame_of(spec, spec.dim, spec.max_positions, spec.init_std, causal=True)
        self.embedding = spec.embedding.build(spec.vocab_size, spec.dim, spec.init_std)
        self.embedding_norm = frame.norm(spec.dim) if spec.embedding_norm else None
        self.dropout = nn.Dropout(spec.dropout)
        self.fill(spec, frame)
        self.head = spec.head.build(spec.vocab_size, spec.dim, self.embedding, spec.init_std, frame.norm)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return self.read(self.embedding(tokens_BT, context), context)

    def read(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Embedded tokens [B, T, D] -> hidden [B, T, D]."""
        x_BTD = self.position.embed(x_BTD, context)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return Tower.forward(self, self.dropout(x_BTD), context)

    @property
    def position_limit(self) -> int | None:
        return self.position.limit

    def chain(self) -> list[tuple[str, nn.Module]]:
        norm = [] if self.embedding_norm is None else [("embedding_norm", self.embedding_norm)]
        blocks = [(f"blocks.{layer}", block) for layer, block in enumerate(self.blocks)]
        first = [("embedding", self.embedding), ("position", self.position), *norm]
        return [*first, *blocks, ("norm", self.norm), ("head", self.head)]

    def train_flops_per_token(self, seq_len: int) -> float:
        attention = sum(kind.attention.score_width(self.spec.dim) for kind in self.spec.kinds())
        return 3 * 2 * (self.head.visited() + self.blocks_visited() + attention * seq_len / 2)
