"""Catalogue of methods that train what stands before a text: virtual tokens, or keys and values of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.peft.base_spec import DEFAULT, AdapterSpec

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton
    from llmfactory.parallel.mesh import World


@dataclass(kw_only=True, slots=True)
class PrecedingSpec(AdapterSpec):
    """Base of the methods that put something before each text. None of them is a change of weights, so none can be merged."""

    merges: ClassVar[bool] = False
    in_layers: ClassVar[bool] = False
    """Whether they are keys and values of layers, rather than tokens."""
    tokens: int = 20
    """Places before each document."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "tokens")


class PromptStart(Enum):
    """What the vectors of virtual tokens are at first."""

    random = "normal numbers, spread as the model's first embeddings are"
    vocabulary = "the vectors of tokens drawn from the vocabulary"
    text = "the vectors of a text's tokens, again from its beginning where it ends too early"


@dataclass(kw_only=True, slots=True)
class Prompt(PrecedingSpec):
    """Prompt tuning (Lester et al. 2021): trained vectors of virtual tokens before each text."""

    start: PromptStart = PromptStart.random
    """What the vectors are at first."""
    text: str | None = None
    """With start=text: the text."""

    def problems(self) -> Iterator[Problem]:
        yield from PrecedingSpec.problems(self)
        if self.start is PromptStart.text and not self.text:
            yield Problem("text", self.text, "start=text needs a text", "start=vocabulary")
        elif self.start is not PromptStart.text and self.text is not None:
            yield Problem("text", self.text, f"start={self.start.name} looks at no text", "start=text")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.prompt import adapt

        adapt(self, model, name)

    def begin(self, model: Skeleton, world: World, encode: Callable[[str], list[int]] | None = None) -> None:
        from llmfactory.peft.prompt import begin

        begin(self, model, world, encode)


class PromptEncoder(Enum):
    """What makes the vectors of virtual tokens from trained ones."""

    mlp = "three linear maps with ReLU between them, for each token by itself"
    lstm = "an LSTM over the tokens in both directions, then two linear maps with ReLU between them"


@dataclass(kw_only=True, slots=True)
class PTuning(PrecedingSpec):
    """P-tuning (Liu et al. 2021): virtual tokens before each text, whose vectors a small network makes."""

    encoder: PromptEncoder = PromptEncoder.mlp
    """The network."""
    hidden: int | None = None
    """Width of its hidden layers (with lstm: of each direction); None: that of the embeddings."""
    layers: int = 2
    """With encoder=lstm: layers of the LSTM."""
    dropout: float = 0.0
    """With encoder=lstm: share of numbers left out between its layers, in training only."""

    def problems(self) -> Iterator[Problem]:
        yield from PrecedingSpec.problems(self)
        yield from at_least(self, 1, "hidden", "layers")
        yield from between(self, 0.0, 0.99, "dropout")
        if self.encoder is PromptEncoder.mlp and self.layers != 2:
            yield Problem("layers", self.layers, "says nothing: it is of encoder=lstm", "layers=2")
        if self.dropout and (self.encoder is PromptEncoder.mlp or self.layers == 1):
            reason = "says nothing: only an LSTM of several layers drops anything between them"
            yield Problem("dropout", self.dropout, reason, "dropout=0.0")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.p_tuning import adapt

        adapt(self, model, name)


@dataclass(kw_only=True, slots=True)
class InLayersSpec(PrecedingSpec):
    """Base of the methods that train keys and values."""

    in_layers: ClassVar[bool] = True
    encoder: bool = False
    """Also in the encoder of an encoder-decoder, before what it reads."""
    cross: bool = False
    """Also in a decoder's attention to an encoder's output."""


@dataclass(kw_only=True, slots=True)
class Prefix(InLayersSpec):
    """Prefix tuning (Li and Liang 2021): trained keys and values before those of each text, in every layer."""

    hidden: int | None = 512
    """Width of the hidden layer of the network that makes keys and values of fewer numbers; None: they are trained themselves."""

    def problems(self) -> Iterator[Problem]:
        yield from InLayersSpec.problems(self)
        yield from at_least(self, 1, "hidden")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.prefix import adapt

        adapt(self, model, name, self.hidden)


@dataclass(kw_only=True, slots=True)
class PTuningV2(InLayersSpec):
    """P-tuning v2 (Liu et al. 2022), deep prompts: trained keys and values in every layer, without a network that makes them."""

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.prefix import adapt

        adapt(self, model, name, None)
