"""An encoder that reads a text and a decoder that writes another one (Vaswani et al. 2017): T5, BART and their kin.

Legend: T tokens of the decoder, M of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmfactory.core.context import CausalMask, Context, DocumentMask, FullMask, SegmentMask, Source
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import EncoderDecoder, TowerSpec
from llmfactory.model.steps import HIDDEN, Pass, Step
from llmfactory.model.tower import Tower, frame_of

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

MEMORY = "memory"
"""Name of what the encoder leaves for the decoder."""


class Side(Tower):
    """One of the two: position vectors and norm of the embeddings, then a tower. [B, T, D] -> [B, T, D]."""

    def __init__(self, model: EncoderDecoder, spec: TowerSpec, causal: bool, name: str) -> None:
        frame = frame_of(spec, model.dim, model.max_positions, model.init_std, causal, name)
        super().__init__(spec, frame)
        self.embedding_norm = frame.norm(model.dim) if model.embedding_norm else None
        self.dropout = nn.Dropout(spec.dropout)

    def steps(self, name: str, embedding: Part, read: Callable[[Pass], tuple[Tensor, Context] | None]) -> list[Step]:
        """From tokens and their context, which `read` tells (None: there are none), to what is carried as `name`."""
        maps = [module for module in (self.embedding_norm, self.dropout) if module is not None]

        def enter(going: Pass) -> None:
            found = read(going)
            if found is not None:
                going.carried[name] = self.enter(embedding(*found), found[1], maps)

        def context(going: Pass) -> Context:
            found = read(going)
            assert found is not None
            return found[1]

        def leave(going: Pass) -> None:
            if name in going.carried:
                going.carried[name] = self.leave(going.carried[name])

        first = Step((embedding, self.position, *maps), enter)
        return [first, *self.through(name, context), Step((self.norm,), leave)]


class EncoderDecoderModel(Skeleton):
    """tokens [B, T] of the decoder -> hidden [B, T, D]; the encoder's tokens [B, M] are `context.source`.

    Cached decoding gives `source` with the first tokens only: cross-attention leaves its keys and values in the state. Later
    calls give `memory_mask` instead.
    """

    def __init__(self, spec: EncoderDecoder) -> None:
        super().__init__()
        self.spec: EncoderDecoder = spec
        std = spec.init_std if spec.embedding_std is None else spec.embedding_std
        self.embedding = spec.embedding.build(spec.vocab_size, spec.dim, std)
        self.decoder_embedding = None if spec.shared_embedding else spec.embedding.build(spec.vocab_size, spec.dim, std)
        self.encoder = Side(spec, spec.encoder, causal=False, name="encoder")
        self.decoder = Side(spec, spec.decoder, causal=True, name="decoder")
        self.head = spec.head.build(spec.vocab_size, spec.dim, self._written, spec.init_std, spec.decoder.norm.build)

    @property
    def _written(self) -> Part:
        """Embedding of the decoder's tokens."""
        return self.embedding if self.decoder_embedding is None else self.decoder_embedding

    def declare(self) -> dict[str, Parameter]:
        return {}

    def steps(self) -> list[Step]:
        reading = self.encoder.steps(MEMORY, self.embedding, _read)
        return [*reading, *self.decoder.steps(HIDDEN, self._written, _write)]

    def context(self, batch: Batch, isolated: bool = True) -> Context:
        """A decoder's token sees those before it in its document, and all of the encoder's document of the same number."""
        if "source" not in batch:
            raise UserError("an encoder-decoder needs the encoder's tokens beside the decoder's (`source` in the batch)")
        tokens_BM, positions_BM = batch["source"], batch["source_positions"]
        if not isolated:
            source = Source(tokens_BM, Context(positions_BM, FullMask(tokens_BM.shape[1], tokens_BM.device)), FullMask())
            tokens_BT = batch["tokens"]
            return Context(batch["positions"], CausalMask(tokens_BT.shape[1], tokens_BT.device), source=source)
        segments_BT, segments_BM = batch["segments"], batch["source_segments"]
        inner = Context(positions_BM, SegmentMask(segments_BM), segments=segments_BM)
        source = Source(tokens_BM, inner, SegmentMask(segments_BT, segments_BM))
        return Context(batch["positions"], DocumentMask(segments_BT), segments=segments_BT, source=source)

    def term_tokens(self, batch: Batch) -> dict[str, float]:
        """Terms of the encoder's parts are sums over the tokens that it reads."""
        read = float((batch["source_segments"] > 0).sum().item())
        found = super().term_tokens(batch)
        return {name: read if name.startswith("encoder_") else count for name, count in found.items()}

    @property
    def position_limit(self) -> int | None:
        limits = [side.position.limit for side in (self.encoder, self.decoder) if side.position.limit is not None]
        return min(limits, default=None)

    def train_flops_per_token(self, seq_len: int) -> float:
        """For a token of the decoder and one of the encoder: both sides' rows have `seq_len` of them."""
        dim, decoder = self.spec.dim, self.spec.decoder
        both_ways = sum(kind.attention.score_width(dim) for kind in self.spec.encoder.kinds())
        both_ways += decoder.n_layers * (decoder.cross.score_width(dim) if decoder.cross else 0)
        causal = sum(kind.attention.score_width(dim) for kind in decoder.kinds())
        matrices = self.head.visited() + self.encoder.blocks_visited() + self.decoder.blocks_visited()
        return 3 * 2 * (matrices + (both_ways + causal / 2) * seq_len)


def _read(going: Pass) -> tuple[Tensor, Context] | None:
    """What the encoder reads; terms of the loss go where the decoder's context says. None in later calls of cached decoding."""
    source, context = going.context.source, going.context
    return None if source is None else (source.tokens, source.context.with_(record=context.record))


def _write(going: Pass) -> tuple[Tensor, Context]:
    """What the decoder reads, beside the encoder's output."""
    context = going.context
    if context.source is not None:
        context = context.with_(memory=going.carried[MEMORY], memory_mask=context.source.mask, source=None)
    elif context.state is None:
        raise UserError("an encoder-decoder needs the encoder's tokens beside the decoder's (`source` in the batch)")
    return going.tokens, context
