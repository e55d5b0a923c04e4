"""What tokenizers have in common in the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.core.special import Special

if TYPE_CHECKING:
    from llmfactory.data.tokenizer.tokenizer import TokenizerSource


@dataclass(kw_only=True, slots=True)
class TokenizerSpec(Spec):
    """Base of the tokenizers."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        """`vocab_size` is the model's; a tokenizer may use fewer ids, never more.

        `specials`: further tokens that the model's vocabulary must hold. Those that the tokenizer lacks take the highest ids,
        which its own must not reach.
        """
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/tokenizer")


class Normalization(Enum):
    """The form of Unicode that text is brought to first (Unicode Standard Annex 15)."""

    none = "none"
    """Text stays as it is."""
    nfc = "nfc"
    """Letters and their accents are one character where there is one; nothing that can be read changes."""
    nfkc = "nfkc"
    """Also what only looks different (full-width letters, ligatures, circled numbers) becomes plain; the text is lost."""


@dataclass(kw_only=True, slots=True)
class TrainedSpec(TokenizerSpec):
    """Base of the tokenizers that are learned from the training part of the corpus."""

    vocab_size: int | None = None
    """Number of ids at most, special tokens included; None: the model's vocab_size."""
    train_bytes: int = 20_000_000
    """How much text at most, in bytes, it is learned from: a sample of documents spread over the corpus."""
    normalization: Normalization = Normalization.none
    """The form of Unicode that text is brought to first."""
    special_tokens: list[str] = field(default_factory=list)
    """Tokens besides the end of a document that stand for no text (<|im_start|>): each has an id that no text is given."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "train_bytes")
        yield from distinct(self.special_tokens)


@dataclass(kw_only=True, slots=True)
class LoadedSpec(TokenizerSpec):
    """Base of the tokenizers that are read from a file."""

    file: str
    """Path of the file."""
    end_token: str | None = None
    """The token between documents; None: the first of <|endoftext|>, </s>, <|end_of_text|>, [SEP] that the file knows."""
    special_tokens: list[str] = field(default_factory=list)
    """Tokens that stand for no text (<|im_start|>); those that the file lacks are given the next ids."""

    def problems(self) -> Iterator[Problem]:
        yield from distinct(self.special_tokens)


def distinct(tokens: Sequence[str]) -> Iterator[Problem]:
    """Special tokens are names."""
    if "" in tokens or len(set(tokens)) < len(tokens):
        yield Problem("special_tokens", tokens, "each must have a name of its own", "special_tokens=[]")
