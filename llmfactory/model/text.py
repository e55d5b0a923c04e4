"""What skeletons share that are one stack of blocks over one text: embedding, stack, head."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.part import declare_linear
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import TextSpec
from llmfactory.model.steps import HIDDEN, Pass, Step
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

    @property
    def maps(self) -> list[nn.Module]:
        """What the embedded tokens go through before the first block."""
        return [module for module in (self.embedding_norm, self.dropout, self.project) if module is not None]

    def steps(self) -> list[Step]:
        return self.stack(self._embed, _own)

    def _embed(self, going: Pass) -> Tensor:
        return self.embedding(going.tokens, going.context)  # type: ignore[no-any-return]

    def stack(
        self, embed: Callable[[Pass], Tensor], context: Callable[[Pass], Context], weights: tuple[nn.Parameter, ...] = ()
    ) -> list[Step]:
        """From tokens to hidden. `embed` makes what stands where the tokens were, [B, T, width of the embedding], with the embedding
        and `weights`; `context` is what the blocks are told."""

        def enter(going: Pass) -> None:
            going.carried[HIDDEN] = self.enter(embed(going), context(going), self.maps)

        def leave(going: Pass) -> None:
            going.carried[HIDDEN] = self.leave(going.carried[HIDDEN])

        first = Step((self.embedding, self.position, *self.maps), enter, weights)
        return [first, *self.through(HIDDEN, context), Step((self.norm,), leave)]

    @property
    def position_limit(self) -> int | None:
        return self.position.limit

    def train_flops_per_token(self, seq_len: int) -> float:
        attention = sum(kind.attention.score_width(self.spec.dim) for kind in self.spec.kinds())
        seen = attention * seq_len / 2 if self.causal else attention * seq_len
        projection = 0 if self.project is None else self.project.weight.numel()
        return 3 * 2 * (projection + self.head.visited() + self.blocks_visited() + seen)


def _own(going: Pass) -> Context:
    return going.context
