"""A stack in which tokens are predicted in any order (Yang et al. 2019): XLNet.

In training a batch's `order` says which token comes when. Two streams pass through the same blocks, one behind the other: the
content stream, in which a token sees itself and those before it in the order, and the query stream, in which it sees those before
it only. The query stream starts from one trained vector, so that it knows a token's place and not its content; it is the output.

Without an order every token sees all of its document, and the content stream is the output: fine-tuning and evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context, FullMask, Mask, PermutationMask, SegmentMask, StreamsMask
from llmfactory.core.sharding import Normal, Parameter
from llmfactory.model.attention.two_stream import TwoStreamAttention
from llmfactory.model.spec import TwoStream
from llmfactory.model.steps import HIDDEN, Pass, Step
from llmfactory.model.text import TextModel

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class TwoStreamModel(TextModel):
    """tokens [B, T] -> hidden [B, T, D], of the query stream where the context's mask is a `StreamsMask`."""

    causal = False

    def __init__(self, spec: TwoStream) -> None:
        super().__init__(spec)
        self.query = nn.Parameter(torch.zeros(spec.dim))

    def declare(self) -> dict[str, Parameter]:
        return {**super().declare(), "query": Parameter(Normal(self.std), decay=False)}

    def steps(self) -> list[Step]:
        return [*self.stack(self._streams, _context, (self.query,)), Step((), _answer)]

    def _streams(self, going: Pass) -> Tensor:
        content_BTD = self.embedding(going.tokens, going.context)
        if going.context.mask.streams == 1:
            return content_BTD  # type: ignore[no-any-return]
        return torch.cat((content_BTD, self.query.to(content_BTD.dtype).expand_as(content_BTD)), 1)

    def context(self, batch: Batch, isolated: bool = True) -> Context:
        tokens_BT = batch["tokens"]
        segments_BT = batch["segments"] if isolated else None
        mask: Mask
        if "order" in batch:
            documents_BT = torch.ones_like(tokens_BT) if segments_BT is None else segments_BT
            content, query = (PermutationMask(batch["order"], documents_BT, strict) for strict in (False, True))
            mask = StreamsMask(content, query, tokens_BT.shape[1])
        elif segments_BT is None:
            mask = FullMask(tokens_BT.shape[1], tokens_BT.device)
        else:
            mask = SegmentMask(segments_BT)
        return Context(batch["positions"], mask, segments=segments_BT, types=batch.get("types"))

    def term_tokens(self, batch: Batch) -> dict[str, float]:
        """Of both streams, where there are two."""
        streams = 2 if "order" in batch else 1
        return {name: streams * count for name, count in super().term_tokens(batch).items()}

    def train_flops_per_token(self, seq_len: int) -> float:
        """Of training with an order: both streams, the second without keys and values of its own."""
        spared = sum(
            part.k.weight.numel() + part.v.weight.numel() for part in self.modules() if isinstance(part, TwoStreamAttention)
        )
        pairs = sum(kind.attention.score_width(self.spec.dim) for kind in self.spec.kinds()) * seq_len
        return 3 * 2 * (self.head.visited() + 2 * (self.blocks_visited() + pairs) - spared)


def _context(going: Pass) -> Context:
    """Who counts tokens by segments finds each twice."""
    context = going.context
    if context.mask.streams == 1 or context.segments is None:
        return context
    return context.with_(segments=context.segments.repeat(1, 2))


def _answer(going: Pass) -> None:
    """Of two streams, the second."""
    if going.context.mask.streams == 2:
        going.carried[HIDDEN] = going.carried[HIDDEN][:, going.tokens.shape[1] :]
