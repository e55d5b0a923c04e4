"""An encoder that reads a text and a decoder that writes another one (Vaswani et al. 2017): T5, BART and their kin.

Legend: T tokens of the decoder, M of the encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmfactory.core.context import CausalMask, Context, DocumentMask, FullMask, SegmentMask, Source
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import EncoderDecoder, TowerSpec
from llmfactory.model.tower import Tower, frame_of

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class Side(Tower):
    """One of the two: position vectors and norm of the embeddings, then a tower. [B, T, D] -> [B, T, D]."""

    def __init__(self, model: EncoderDecoder, spec: TowerSpec, causal: bool, name: str) -> None:
        frame = frame_of(spec, model.dim, model.max_positions, model.init_std, causal, name)
        super().__init__(spec, frame)
        self.embedding_norm = frame.norm(model.dim) if model.embedding_norm else None
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = self.position.embed(x_BTD, context)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return super().forward(self.dropout(x_BTD), context)

    def chain(self, name: str) -> list[tuple[str, nn.Module]]:
        """Its modules in forward order; `name` is the tower's own."""
        norm = [] if self.embedding_norm is None else [("embedding_norm", self.embedding_norm)]
        blocks = [(f"blocks.{layer}", block) for layer, block in enumerate(self.blocks)]
        found = [("position", self.position), *norm, *blocks, ("norm", self.norm)]
        return [(f"{name}.{inner}", module) for inner, module in found]


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

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        if context.source is not None:
            context = context.with_(memory=self.encode(context.source, context), memory_mask=context.source.mask, source=None)
        elif context.state is None:
            raise UserError("an encoder-decoder needs the encoder's tokens beside the decoder's (`source` in the batch)")
        return self.decoder(self._written(tokens_BT, context), context)  # type: ignore[no-any-return]

    def encode(self, source: Source, context: Context) -> Tensor:
        """The encoder's output [B, M, D]; terms of the loss go where the decoder's `context` says."""
        inner = source.context.with_(record=context.record)
        return self.encoder(self.embedding(source.tokens, inner), inner)  # type: ignore[no-any-return]

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

    def chain(self) -> list[tuple[str, nn.Module]]:
        second = [] if self.decoder_embedding is None else [("decoder_embedding", self.decoder_embedding)]
        sides = [*self.encoder.chain("encoder"), *second, *self.decoder.chain("decoder")]
        return [("embedding", self.embedding), *sides, ("head", self.head)]

    def train_flops_per_token(self, seq_len: int) -> float:
        """For a token of the decoder and one of the encoder: both sides' rows have `seq_len` of them."""
        dim, decoder = self.spec.dim, self.spec.decoder
        both_ways = sum(kind.attention.score_width(dim) for kind in self.spec.encoder.kinds())
        both_ways += decoder.n_layers * (decoder.cross.score_width(dim) if decoder.cross else 0)
        causal = sum(kind.attention.score_width(dim) for kind in decoder.kinds())
        matrices = self.head.visited() + self.encoder.blocks_visited() + self.decoder.blocks_visited()
        return 3 * 2 * (matrices + (both_ways + causal / 2) * seq_len)
