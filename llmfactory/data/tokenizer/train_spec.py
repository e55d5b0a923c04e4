"""Tokenizers that are learned from the corpus, and bytes, of which there is nothing to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.base_spec import TokenizerSpec, TrainedSpec

if TYPE_CHECKING:
    from llmfactory.data.tokenizer.tokenizer import TokenizerSource


class Split(Enum):
    """Where text is cut before merges are learned; no token crosses a cut. The measured difference stands in byte_bpe.py."""

    gpt2 = "gpt2"
    """Words, numbers, punctuation, white space (GPT-2)."""
    gpt4 = "gpt4"
    """Also punctuation with its line end; numbers in threes (GPT-4, Llama 3)."""
    indent = "indent"
    """Also a line end with the next line's indentation: fewest tokens on code and documentation."""


@dataclass(kw_only=True, slots=True)
class ByteBpe(TrainedSpec):
    """Byte-level byte-pair encoding (Radford et al. 2019, section 2.2), trained on the training part of the corpus."""

    split: Split = Split.indent
    """What may become one token. gpt2 and gpt4 are the splits that other programs know."""

    def problems(self) -> Iterator[Problem]:
        yield from TrainedSpec.problems(self)
        yield from at_least(self, 257 + len(self.special_tokens), "vocab_size")

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.byte_bpe import BytePairTrainer

        return BytePairTrainer(self, vocab_size - len(specials))


@dataclass(kw_only=True, slots=True)
class WordLevel(TokenizerSpec):
    """Whole words, the most frequent of the training part of the corpus; white space and rare words are lost."""

    vocab_size: int | None = None
    """Number of ids at most, the unknown word and the end of a document included; None: the model's vocab_size."""
    min_count: int = 5
    """A word that stands less often in the text has no id."""
    lowercase: bool = False
    """Whether capital letters are read as small ones."""
    train_bytes: int = 1_000_000_000
    """How much text at most, in bytes, words are counted in: a sample of documents spread over the corpus."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 3, "vocab_size")
        yield from at_least(self, 1, "min_count", "train_bytes")

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.word_level import WordCounter

        return WordCounter(self, vocab_size - len(specials))


@dataclass(kw_only=True, slots=True)
class Bytes(TokenizerSpec):
    """One id a byte and one for the end of a document: 257 ids, nothing to train."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.bytes import ByteTokenizerSource

        return ByteTokenizerSource(vocab_size, len(specials))


@dataclass(kw_only=True, slots=True)
class PiecesSpec(TrainedSpec):
    """Base of SentencePiece's tokenizers (Kudo and Richardson 2018): spaces belong to the pieces, and what is no piece is spelled
    in bytes."""

    coverage: float = 0.9995
    """Share of the characters of the text that have an id of their own; the rarest are spelled in bytes."""
    split_digits: bool = True
    """Each digit is a piece of its own."""

    def problems(self) -> Iterator[Problem]:
        yield from TrainedSpec.problems(self)
        yield from at_least(self, 258 + len(self.special_tokens), "vocab_size")
        yield from between(self, 0.98, 1.0, "coverage")


@dataclass(kw_only=True, slots=True)
class SentencepieceBpe(PiecesSpec):
    """Byte-pair encoding on characters with spaces among them and bytes for rare ones, as of Llama and Mistral."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.sentencepiece_bpe import PieceTrainer

        return PieceTrainer(self, vocab_size - len(specials))


@dataclass(kw_only=True, slots=True)
class Unigram(PiecesSpec):
    """The most likely pieces under a unigram model (Kudo 2018), as of T5, XLNet and ALBERT; trained by `sentencepiece`."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.unigram import UnigramTrainer

        return UnigramTrainer(self, vocab_size - len(specials))


@dataclass(kw_only=True, slots=True)
class Wordpiece(TrainedSpec):
    """Words, and pieces that go on with a word, the longest first (Wu et al. 2016; Devlin et al. 2018); white space is lost."""

    lowercase: bool = True
    """Whether capital letters are read as small ones, and accents are left out."""

    def problems(self) -> Iterator[Problem]:
        yield from TrainedSpec.problems(self)
        yield from at_least(self, 6 + len(self.special_tokens), "vocab_size")

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.wordpiece import WordPieceTrainer

        return WordPieceTrainer(self, vocab_size - len(specials))


class Unknown(Enum):
    """What becomes of a character that has no id."""

    bytes = "bytes"
    """It is spelled in bytes, which have ids for that: any text comes back."""
    token = "token"
    """It becomes the unknown token."""


@dataclass(kw_only=True, slots=True)
class Characters(TrainedSpec):
    """One id a character, the most frequent of the training part of the corpus."""

    unknown: Unknown = Unknown.bytes
    """What becomes of the others."""

    def problems(self) -> Iterator[Problem]:
        yield from TrainedSpec.problems(self)
        least = (258 if self.unknown is Unknown.bytes else 3) + len(self.special_tokens)
        yield from at_least(self, least, "vocab_size")

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.characters import CharacterCounter

        return CharacterCounter(self, vocab_size - len(specials))
