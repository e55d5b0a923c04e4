"""Tokenizers that are read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.special import Special
from llmfactory.data.tokenizer.base_spec import LoadedSpec, TokenizerSpec

if TYPE_CHECKING:
    from llmfactory.data.tokenizer.tokenizer import TokenizerSource


@dataclass(kw_only=True, slots=True)
class HfFile(LoadedSpec):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, or a published folder with any of the files that are known
    here; of a folder, `end_token` None is the token that its files name."""

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


@dataclass(kw_only=True, slots=True)
class SentencepieceFile(LoadedSpec):
    """A `.model` file of SentencePiece: pairs with scores (Llama, Mistral) or a unigram model (T5, XLNet)."""

    begin_token: str | None = None
    """What stands before a text that a model continues (<s>); None: the token between documents."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.sentencepiece_file import SentencepieceTokenizerFile

        return SentencepieceTokenizerFile(self, vocab_size, specials)


class TiktokenSplit(Enum):
    """Where text is cut before ranks are looked at, by the names of OpenAI's vocabularies; a file does not say it."""

    gpt2 = "gpt2"
    r50k = "r50k"
    """As gpt2."""
    p50k = "p50k"
    """As gpt2, with tokens for runs of spaces."""
    cl100k = "cl100k"
    """GPT-4; also Llama 3 and others after it."""
    o200k = "o200k"
    """GPT-4o."""


@dataclass(kw_only=True, slots=True)
class TiktokenFile(LoadedSpec):
    """A file of ranks of `tiktoken`: a token in base64 and its rank on each line."""

    split: TiktokenSplit
    """Where text is cut; the special tokens of that vocabulary come with it if the file has its size."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.tiktoken_file import TiktokenTokenizerFile

        return TiktokenTokenizerFile(self, vocab_size, specials)


@dataclass(kw_only=True, slots=True)
class WordpieceFile(LoadedSpec):
    """BERT's `vocab.txt`: a word, or a piece that goes on with one (##ing), on each line."""

    lowercase: bool = True
    """Whether capital letters are read as small ones, and accents are left out (uncased)."""
    split_chinese: bool = True
    """Whether each Chinese character is a word."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.wordpiece_file import WordPieceTokenizerFile

        return WordPieceTokenizerFile(self, vocab_size, specials)


@dataclass(kw_only=True, slots=True)
class Gpt2Files(LoadedSpec):
    """GPT-2's two files, `vocab.json` and `merges.txt` (or `encoder.json` and `vocab.bpe`): `file` is the first of them."""

    merges: str | None = None
    """Path of the second; None: it lies beside the first."""

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.gpt2_files import PairFiles

        return PairFiles(self, vocab_size, specials)
