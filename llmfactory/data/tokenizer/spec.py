"""Catalogue of tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


class Split(Enum):
    """Where text is cut before merges are learned; no token crosses a cut. The measured difference stands in byte_bpe.py."""

    gpt2 = "gpt2"
    """Words, numbers, punctuation, white space (GPT-2)."""
    gpt4 = "gpt4"
    """Also punctuation with its line end; numbers in threes (GPT-4, Llama 3)."""
    indent = "indent"
    """Also a line end with the next line's indentation: fewest tokens on code and documentation."""


@dataclass(kw_only=True, slots=True)
class ByteBpe(TokenizerSpec):
    """Byte-level byte-pair encoding (Radford et al. 2019, section 2.2), trained on the training part of the corpus."""

    vocab_size: int | None = None
    """Number of ids, special token included; None: the model's vocab_size."""
    train_bytes: int = 20_000_000
    """How much text at most, in bytes, the merges are learned from: a sample of documents spread over the corpus."""
    split: Split = Split.indent
    """What may become one token. gpt2 and gpt4 are the splits that other programs know."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 257, "vocab_size")
        yield from at_least(self, 1, "train_bytes")

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
class HfFile(TokenizerSpec):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library."""

    file: str
    """Path of the file, or of a folder that holds it."""
    end_token: str | None = None
    """The token between documents; None: the one that the folder's other files name, else the first of <|endoftext|>, </s>,
    <|end_of_text|>, [SEP] that the file knows."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.hf_file import TokenizerFile

        return TokenizerFile(self, vocab_size, specials)


@dataclass(kw_only=True, slots=True)
class GgufFile(TokenizerSpec):
    """The tokenizer in a GGUF file's metadata: byte-level pairs (GPT-2's kind) or scored pieces (SentencePiece)."""

    file: str
    """Path of the file."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.gguf_file import GgufTokenizerFile

        return GgufTokenizerFile(self, vocab_size, specials)
