"""Catalogue of heads: from hidden vectors to logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.model.ffn.spec import Activation

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmfactory.model.head.part import Head
    from llmfactory.model.part import Part


class Pooling(Enum):
    """The vector of a document."""

    first = "that of its first token"
    last = "that of its last token"
    mean = "the mean over its tokens"


@dataclass(kw_only=True, slots=True)
class HeadSpec(Spec):
    """Base of the heads."""

    answers: ClassVar[str] = "tokens"
    """What the head says, which objectives name to say what they train: `tokens` (one of the vocabulary at each token), `labels`
    (one of a few classes for each token), `label` (for each document), `span` (start and end), `scalar`, `replaced` (one logit a
    token), `vector` (of each document)."""

    def problems_at_embedding(self, width: int | None, dim: int) -> Iterator[Problem]:
        """What is wrong once the width of the vocabulary's vectors (None: there are none) and the model's are known."""
        yield from ()

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/head")


def tie_fits(tied: bool, head_width: int | None, width: int | None, dim: int) -> Iterator[Problem]:
    """A matrix that is the embedding's has the embedding's width."""
    if tied and width is None:
        yield Problem("tied", True, "the embedding has no vectors of a vocabulary to borrow", "tied=false")
    elif tied and (head_width or dim) != width:
        reason = f"a tied head has the width of the embedding's vectors, {width}"
        yield Problem("width", head_width, reason, f"width={'null' if width == dim else width}")


@dataclass(kw_only=True, slots=True)
class Lm(HeadSpec):
    """A linear map to one logit a token."""

    tied: bool
    """Borrow the embedding's matrix (Press and Wolf 2017) instead of owning one."""
    bias: bool = False
    """Whether the logits have a bias."""
    width: int | None = None
    """Width of the matrix; hidden vectors of another width are projected to it (OPT-350M). None: the model's, no projection."""
    scale: float = 1.0
    """Factor on the logits, before the bias (Cohere's Command R: 0.0625)."""
    dim_power: float = 0.0
    """The factor is also the model's width to this power (T5 with tied embeddings: -0.5)."""
    softcap: float | None = None
    """Logits z become softcap * tanh(z / softcap) (Gemma 2: 30); None: they stay."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from above(self, 0.0, "softcap", repair=30.0)

    def problems_at_embedding(self, width: int | None, dim: int) -> Iterator[Problem]:
        yield from tie_fits(self.tied, self.width, width, dim)

    def small(self, scale: float) -> dict[str, Any]:
        return {"width": None if self.width is None else max(1, round(self.width * scale))}

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.lm import OwnHead, Projection, TiedHead

        width = self.width or dim
        transform = None if self.width is None else Projection(dim, width, std)
        factor = self.scale * dim**self.dim_power
        if self.tied:
            return TiedHead(vocab_size, embedding, bias=self.bias, transform=transform, scale=factor, softcap=self.softcap)
        return OwnHead(vocab_size, width, std, bias=self.bias, transform=transform, scale=factor, softcap=self.softcap)


@dataclass(kw_only=True, slots=True)
class LmUnitRows(HeadSpec):
    """A linear map to one logit a token whose matrix has rows of length one (Baichuan 2)."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.lm_unit_rows import UnitRowsHead

        return UnitRowsHead(vocab_size, dim, std)


@dataclass(kw_only=True, slots=True)
class Mlm(HeadSpec):
    """Dense, activation and norm, then a linear map to one logit a token (BERT)."""

    tied: bool
    """Borrow the embedding's matrix instead of owning one."""
    activation: Activation
    """After the dense layer."""
    bias: bool = True
    """Whether the logits have a bias."""
    width: int | None = None
    """Width of the dense layer's output and of the matrix (ALBERT, ELECTRA: the vocabulary vectors'); None: the model's."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "width")

    def problems_at_embedding(self, width: int | None, dim: int) -> Iterator[Problem]:
        yield from tie_fits(self.tied, self.width, width, dim)

    def small(self, scale: float) -> dict[str, Any]:
        return {"width": None if self.width is None else max(1, round(self.width * scale))}

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.lm import OwnHead, TiedHead
        from llmfactory.model.head.mlm import Transform

        width = self.width or dim
        transform = Transform(dim, width, std, self.activation, norm(width))
        if self.tied:
            return TiedHead(vocab_size, embedding, bias=self.bias, transform=transform)
        return OwnHead(vocab_size, width, std, bias=self.bias, transform=transform)


@dataclass(kw_only=True, slots=True)
class Pooler(HeadSpec):
    """A vector for each document: tanh of a linear map of its first token's (BERT)."""

    answers: ClassVar[str] = "vector"

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.pooler import PoolerHead

        return PoolerHead(dim, dim, std, bias=True)


@dataclass(kw_only=True, slots=True)
class Sentence(HeadSpec):
    """A vector for each document from its tokens' vectors, without weights (Reimers and Gurevych 2019)."""

    answers: ClassVar[str] = "vector"
    pooling: Pooling = Pooling.mean
    """Which of its tokens' vectors stand for a document."""
    normalize: bool = True
    """Whether vectors have length one, so that products are cosines."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.sentence import SentenceHead

        return SentenceHead(self)


@dataclass(kw_only=True, slots=True)
class Classifier(HeadSpec):
    """One of a few classes for each document."""

    answers: ClassVar[str] = "label"
    n_classes: int
    """Number of classes."""
    pooling: Pooling = Pooling.first
    """Which of its tokens' vectors stand for a document."""
    activation: Activation | None = None
    """Of a dense layer before the linear map (BERT, RoBERTa: tanh; ELECTRA: gelu); None: there is no such layer."""
    bias: bool = True
    """Whether the logits have a bias."""
    input_dropout: float = 0.0
    """Share of activations dropped before the dense layer, in training only."""
    dropout: float = 0.0
    """Share of activations dropped before the linear map, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_classes")
        yield from between(self, 0.0, 0.99, "input_dropout", "dropout")

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.classifier import ClassifierHead

        return ClassifierHead(self, dim, std)


@dataclass(kw_only=True, slots=True)
class TokenClassifier(HeadSpec):
    """One of a few classes for each token."""

    answers: ClassVar[str] = "labels"
    n_classes: int
    """Number of classes."""
    dropout: float = 0.0
    """Share of activations dropped before the linear map, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_classes")
        yield from between(self, 0.0, 0.99, "dropout")

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.token_classifier import TokenClassifierHead

        return TokenClassifierHead(self, dim, std)


@dataclass(kw_only=True, slots=True)
class SpanQa(HeadSpec):
    """Scores of each token to be the first or the last of an answer (Devlin et al. 2018, section 4.2)."""

    answers: ClassVar[str] = "span"

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.span_qa import SpanHead

        return SpanHead(dim, std)


@dataclass(kw_only=True, slots=True)
class Scalar(HeadSpec):
    """One number: a reward of a document or a value at every token (Ouyang et al. 2022)."""

    answers: ClassVar[str] = "scalar"
    pooling: Pooling | None = None
    """Which of its tokens' vectors stand for a document; None: a number for every token."""
    bias: bool = False
    """Whether the number has a bias."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.scalar import ScalarHead

        return ScalarHead(self, dim, std)


@dataclass(kw_only=True, slots=True)
class Discriminator(HeadSpec):
    """Whether each token was replaced: dense and activation, then one logit a token (ELECTRA)."""

    answers: ClassVar[str] = "replaced"
    activation: Activation
    """After the dense layer."""

    def build(self, vocab_size: int, dim: int, embedding: Part, std: float, norm: Callable[[int], Part]) -> Head:
        from llmfactory.model.head.discriminator import DiscriminatorHead

        return DiscriminatorHead(self, dim, std)
