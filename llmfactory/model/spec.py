"""Catalogue of skeletons: one class a forward graph. Families (GPT-2, LLaMA, ...) are presets in conf/model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between, stem
from llmfactory.model.attention.spec import TwoStream as TwoStreamAttention
from llmfactory.model.connector.spec import ConnectorSpec
from llmfactory.model.embedding.spec import EmbeddingSpec
from llmfactory.model.ffn.spec import FfnSpec
from llmfactory.model.head.spec import HeadSpec
from llmfactory.model.mixer.spec import MixerSpec
from llmfactory.model.norm.spec import NormSpec
from llmfactory.model.tower_spec import BASE as BASE
from llmfactory.model.tower_spec import Kind as Kind
from llmfactory.model.tower_spec import LayerSpec as LayerSpec
from llmfactory.model.tower_spec import TowerSpec as TowerSpec
from llmfactory.model.tower_spec import VisionSpec as VisionSpec

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton


@dataclass(kw_only=True, slots=True)
class ModelSpec(Spec):
    """Base of the skeletons."""

    graph: ClassVar[str] = "decoder"
    """The kind of forward graph, which objectives name to say what they train."""
    vocab_size: int
    """Rows of the embedding; at least the tokenizer's vocabulary (published models pad it)."""
    dim: int
    """Width of the residual stream."""
    max_positions: int
    """Longest sequence, in tokens, that the model is made for."""
    init_std: float = 0.02
    """Standard deviation of the initial weight matrices."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "vocab_size", "max_positions")
        if self.dim < 1:
            yield Problem("dim", self.dim, "must be at least 1", "dim=128")
        yield from above(self, 0.0, "init_std", repair=0.02)

    def build(self) -> Skeleton:
        """The module, on the current default device (use `torch.device("meta")` to count without allocating)."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model")


def head_problems(head: HeadSpec, embedding: EmbeddingSpec, width: int, dim: int) -> Iterator[Problem]:
    """Whether the embedding is one of tokens, and the head can borrow its vectors, built `width` wide in a model of width `dim`."""
    if embedding.reads != "tokens":
        reason = f"it reads {embedding.reads}, and the model reads tokens"
        yield Problem("embedding", stem(type(embedding)), reason, "model/embedding@embedding=token")
    yield from (problem.below("head") for problem in head.problems_at_embedding(embedding.vector_width(width), dim))


@dataclass(kw_only=True)
class TextSpec(TowerSpec, ModelSpec):
    """Base of the skeletons that are one stack of blocks over one text."""

    embedding: EmbeddingSpec
    head: HeadSpec
    embedding_norm: bool = False
    """Normalize the embeddings, with position vectors where there are, before the first block (BLOOM, BERT)."""

    def mapped_width(self) -> int | None:
        """Width of the embeddings where a linear map takes them to the model's; None: it is the model's."""
        return None

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from TowerSpec.problems(self)
        yield from self.problems_at_width(self.dim)
        yield from head_problems(self.head, self.embedding, self.mapped_width() or self.dim, self.dim)
        if self.cross is not None:
            yield Problem("cross", stem(type(self.cross)), "there is no encoder to attend to", "model=<an encoder-decoder>")


@dataclass(kw_only=True, slots=True)
class DecoderOnly(TextSpec):
    """A stack of causal self-attention blocks (Radford et al. 2018): GPT, LLaMA and their kin."""

    def build(self) -> Skeleton:
        from llmfactory.model.decoder_only import Decoder

        return Decoder(self)


@dataclass(kw_only=True, slots=True)
class EncoderOnly(TextSpec):
    """A stack of self-attention blocks in which each token sees its whole document (Devlin et al. 2018): BERT and its kin."""

    graph: ClassVar[str] = "encoder"
    embedding_dim: int | None = None
    """Width of token, kind and position vectors, whose sum is normalized and mapped to the model's width (ALBERT, ELECTRA); None:
    the model's width, without a map."""
    unique_layers: int | None = None
    """Number of blocks with weights of their own, each used for n_layers / unique_layers layers in a row (ALBERT: 1); None: all."""

    def mapped_width(self) -> int | None:
        return self.embedding_dim

    def problems(self) -> Iterator[Problem]:
        yield from TextSpec.problems(self)
        yield from at_least(self, 1, "embedding_dim", "unique_layers")
        unique = self.unique_layers
        if unique is None or unique < 1:
            return
        if self.n_layers % unique:
            reason = f"does not divide n_layers={self.n_layers}"
            yield Problem("unique_layers", unique, reason, f"unique_layers={math.gcd(unique, self.n_layers)}")
        if self.pattern:
            reason = "layers that share their weights are of one kind, but there is a pattern"
            yield Problem("unique_layers", unique, reason, "unique_layers=null")

    def small(self, scale: float) -> dict[str, Any]:
        """Two layers that share what the layers shared."""
        changes = TowerSpec.small(self, scale)
        if self.embedding_dim is not None:
            changes["embedding_dim"] = max(1, round(self.embedding_dim * scale))
        if self.unique_layers is not None:
            changes["unique_layers"] = changes["n_layers"] if self.unique_layers == self.n_layers else 1
        return changes

    def repeats(self) -> int:
        return 1 if self.unique_layers is None else self.n_layers // self.unique_layers

    def build(self) -> Skeleton:
        from llmfactory.model.encoder_only import Encoder

        return Encoder(self)


@dataclass(kw_only=True, slots=True)
class TwoStream(TextSpec):
    """A stack in which tokens are predicted in any order, from a second stream that knows their place only (Yang et al. 2019):
    XLNet."""

    graph: ClassVar[str] = "two_stream"

    def problems(self) -> Iterator[Problem]:
        yield from TextSpec.problems(self)
        for kind in self.kinds():
            if not isinstance(kind.attention, TwoStreamAttention):
                reason = "reads the content of every token of both streams, so that a token would see what it has to predict"
                yield Problem("attention", stem(type(kind.attention)), reason, "model/attention@attention=two_stream")
                break

    def build(self) -> Skeleton:
        from llmfactory.model.two_stream import TwoStreamModel

        return TwoStreamModel(self)


@dataclass(kw_only=True, slots=True)
class EncoderDecoder(ModelSpec):
    """An encoder that reads a text and a decoder that writes another one (Vaswani et al. 2017): T5, BART."""

    graph: ClassVar[str] = "encoder_decoder"
    embedding: EmbeddingSpec
    encoder: TowerSpec
    decoder: TowerSpec
    """Its `cross` attends to the encoder's output."""
    head: HeadSpec
    shared_embedding: bool = True
    """Whether both sides look their tokens up in one embedding."""
    embedding_norm: bool = False
    """Normalize the embeddings of each side before its first block (BART)."""
    embedding_std: float | None = None
    """Standard deviation of the initial embeddings (T5: 1); None: init_std."""

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from above(self, 0.0, "embedding_std", repair=1.0)
        yield from head_problems(self.head, self.embedding, self.dim, self.dim)
        for name, tower in (("encoder", self.encoder), ("decoder", self.decoder)):
            yield from (problem.below(name) for problem in tower.problems_at_width(self.dim))
        if self.encoder.cross is not None:
            yield Problem(
                "encoder.cross", stem(type(self.encoder.cross)), "an encoder has nothing to attend to but its own tokens"
            )
        if self.decoder.cross is None:
            reason = "the decoder has no attention to the encoder's output: the preset chooses none for decoder.cross"
            yield Problem("decoder.cross", None, reason)

    def build(self) -> Skeleton:
        from llmfactory.model.encoder_decoder import EncoderDecoderModel

        return EncoderDecoderModel(self)


@dataclass(kw_only=True, slots=True)
class Multimodal(DecoderOnly):
    """A decoder that reads pictures among its tokens: vision encoder, connector, decoder (LLaVA, MiniGPT-4).

    All fields but those below are the decoder's. Batches without pictures are text like any other.
    """

    graph: ClassVar[str] = "multimodal"
    vision: VisionSpec
    connector: ConnectorSpec
    image_token: int
    """Id of the token that holds a vector's place; a picture takes as many as the connector makes of it."""

    def problems(self) -> Iterator[Problem]:
        yield from DecoderOnly.problems(self)
        if not 0 <= self.image_token < self.vocab_size:
            reason = f"is no id of the embedding's {self.vocab_size} (vocab_size)"
            yield Problem("image_token", self.image_token, reason, f"image_token={self.vocab_size - 1}")

    def small(self, scale: float) -> dict[str, Any]:
        """The id stays within a vocabulary of laptop size."""
        return {**DecoderOnly.small(self, scale), "image_token": min(self.image_token, TOY_IMAGE_TOKEN)}

    @property
    def language(self) -> DecoderOnly:
        """The decoder alone."""
        return DecoderOnly(**{item.name: getattr(self, item.name) for item in fields(DecoderOnly)})

    @property
    def vectors_per_image(self) -> int:
        """Placeholders that a picture takes."""
        return self.connector.n_vectors(self.vision.n_features)

    def build(self) -> Skeleton:
        from llmfactory.model.multimodal import MultimodalModel

        return MultimodalModel(self)


TOY_IMAGE_TOKEN = 383
"""The last id of a vocabulary of laptop size."""


@dataclass(kw_only=True, slots=True)
class Recurrent(ModelSpec):
    """A stack of sequence mixers, which carry a state from token to token (Mikolov et al. 2010): LSTM, GRU, Mamba."""

    graph: ClassVar[str] = "recurrent"
    n_layers: int
    """Number of layers."""
    embedding: EmbeddingSpec
    mixer: MixerSpec
    norm: NormSpec
    """Of each layer's input, and of the last output."""
    head: HeadSpec
    ffn: FfnSpec | None = None
    """Feed-forward part after each mixer; None: there is none."""
    residual: bool
    """Whether a mixer (and a feed-forward part) adds to its input or replaces it."""
    dropout: float = 0.0
    """Share of activations dropped after the embedding, each mixer and each feed-forward part, in training only; never between
    steps of a recurrence (Zaremba et al. 2014)."""
    depth_scaled_init: bool = True
    """With `residual`: divide the initial std of matrices that write to the residual stream by the square root of their number."""

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from at_least(self, 1, "n_layers")
        yield from between(self, 0.0, 0.99, "dropout")
        yield from head_problems(self.head, self.embedding, self.dim, self.dim)
        yield from (problem.below("mixer") for problem in self.mixer.problems_at_width(self.dim))

    def small(self, scale: float) -> dict[str, Any]:
        return {"n_layers": min(self.n_layers, 2)}

    def build(self) -> Skeleton:
        from llmfactory.model.recurrent import RecurrentModel

        return RecurrentModel(self)


@dataclass(kw_only=True, slots=True)
class NeuralNgram(ModelSpec):
    """A feed-forward network that predicts from the last few tokens (Bengio et al. 2003). `dim` is the embeddings' width."""

    graph: ClassVar[str] = "recurrent"
    order: int
    """Tokens of an n-gram, n: it predicts from n - 1."""
    hidden: int
    """Width of the hidden layer."""
    direct: bool = False
    """Whether the embeddings are connected to the logits directly, beside the hidden layer."""
    embedding: EmbeddingSpec
    head: HeadSpec
    dropout: float = 0.0
    """Share of activations dropped before and after the hidden layer, in training only."""

    def features(self) -> int:
        """Width of what the head's matrix is multiplied with."""
        return self.hidden + (self.order - 1) * self.dim * self.direct

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from at_least(self, 2, "order")
        yield from at_least(self, 1, "hidden")
        yield from between(self, 0.0, 0.99, "dropout")
        width = self.embedding.vector_width(self.dim)
        yield from (problem.below("head") for problem in self.head.problems_at_embedding(width, self.features()))

    def small(self, scale: float) -> dict[str, Any]:
        return {"hidden": max(1, round(self.hidden * scale))}

    def build(self) -> Skeleton:
        from llmfactory.model.neural_ngram import NeuralNgramModel

        return NeuralNgramModel(self)


@dataclass(kw_only=True, slots=True)
class KneserNey(ModelSpec):
    """Counts of n-grams, interpolated with modified Kneser-Ney smoothing (Chen and Goodman 1998). Nothing is optimized: its
    training is one pass over the rows, so the keys of `optim` and all of `trainer` but batch_size, progress and sample do
    nothing."""

    graph: ClassVar[str] = "counts"
    dim: int = 1
    """It has no vectors."""
    init_std: float = 1.0
    """It has no weights."""
    order: int
    """Longest n-gram, n: it predicts from n - 1 tokens."""

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from at_least(self, 1, "order")
        if self.dim != 1:
            yield Problem("dim", self.dim, "counts have no vectors", "dim=1")
        if self.init_std != 1.0:
            yield Problem("init_std", self.init_std, "counts have no weights to start with", "init_std=1.0")

    def small(self, scale: float) -> dict[str, Any]:
        return {"dim": 1}

    def build(self) -> Skeleton:
        from llmfactory.model.kneser_ney import KneserNeyModel

        return KneserNeyModel(self)


@dataclass(kw_only=True, slots=True)
class EmbeddingModel(ModelSpec):
    """Two vectors for each word, one as itself and one as a neighbour of others (word2vec, Mikolov et al. 2013)."""

    graph: ClassVar[str] = "words"
    output_std: float = 0.0
    """Standard deviation of the initial vectors of neighbours."""

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from at_least(self, 0.0, "output_std")

    def build(self) -> Skeleton:
        from llmfactory.model.embedding_model import WordVectors

        return WordVectors(self)
