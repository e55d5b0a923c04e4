"""What skeletons share that are one stack of blocks over one text: embedding, stack, head."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.part import declare_linear
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import TextSpec
from llmfactory.model.tower import Tower, frame_of


class TextModel(Tower, Skeleton):
    """tokens [B, T] -> hidden [B, T, D]."""

    causal: bool
    """Whether a token sees only what stands before it."""

    def __init__(self, spec: TextSpec) -> None:
        nn.Module.__init__(self)
        self.spec: TextSpec = spec
        width, self.std = spec.mapped_width() or spec.dim, spec.init_std
        frame = frame_of(spec, spec.dim, spec.max_positions, spec.init_std, self.causal)
        self.embedding = spec.embedding.build(spec.vocab_size, width, spec.init_std)
        self.embedding_norm = frame.norm(width) if spec.embedding_norm else None
        self.project = nn.Linear(width, spec.dim) if spec.mapped_width() else None
        self.dropout = nn.Dropout(spec.dropout)
        self.fill(spec, frame, width)
        self.head = spec.head.build(spec.vocab_size, spec.dim, self.embedding, spec.init_std, frame.norm)

    def declare(self) -> dict[str, Parameter]:
        return {} if self.project is None else declare_linear("project", self.project, self.std, Layout.replicated)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return self.read(self.embedding(tokens_BT, context), context)

    def read(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Embedded tokens [B, T, width of the embedding] -> hidden [B, T, D]."""
        x_BTD = self.position.embed(x_BTD, context)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = self.dropout(x_BTD)
        if self.project is not None:
            x_BTD = self.project(x_BTD)
        return Tower.forward(self, x_BTD, context)

    @property
    def position_limit(self) -> int | None:
        return self.position.limit

    def chain(self) -> list[tuple[str, nn.Module]]:
        between = [(name, getattr(self, name)) for name in ("embedding_norm", "project")]
        first = [("embedding", self.embedding), ("position", self.position)]
        first += [(name, module) for name, module in between if module is not None]
        return [*first, *self.layers(), ("norm", self.norm), ("head", self.head)]

    def train_flops_per_token(self, seq_len: int) -> float:
        attention = sum(kind.attention.score_width(self.spec.dim) for kind in self.spec.kinds())
        seen = attention * seq_len / 2 if self.causal else attention * seq_len
        projection = 0 if self.project is None else self.project.weight.numel()
        return 3 * 2 * (projection + self.head.visited() + self.blocks_visited() + seen)
