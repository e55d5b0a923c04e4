"""Catalogue of tokenizers: learned from the corpus, read from a file, or both."""

from __future__ import annotations

from llmfactory.data.tokenizer.base_spec import LoadedSpec as LoadedSpec
from llmfactory.data.tokenizer.base_spec import Normalization as Normalization
from llmfactory.data.tokenizer.base_spec import TokenizerSpec as TokenizerSpec
from llmfactory.data.tokenizer.base_spec import TrainedSpec as TrainedSpec
from llmfactory.data.tokenizer.extend_spec import Extended as Extended
from llmfactory.data.tokenizer.file_spec import GgufFile as GgufFile
from llmfactory.data.tokenizer.file_spec import Gpt2Files as Gpt2Files
from llmfactory.data.tokenizer.file_spec import HfFile as HfFile
from llmfactory.data.tokenizer.file_spec import SentencepieceFile as SentencepieceFile
from llmfactory.data.tokenizer.file_spec import TiktokenFile as TiktokenFile
from llmfactory.data.tokenizer.file_spec import TiktokenSplit as TiktokenSplit
from llmfactory.data.tokenizer.file_spec import WordpieceFile as WordpieceFile
from llmfactory.data.tokenizer.train_spec import ByteBpe as ByteBpe
from llmfactory.data.tokenizer.train_spec import Bytes as Bytes
from llmfactory.data.tokenizer.train_spec import Characters as Characters
from llmfactory.data.tokenizer.train_spec import PiecesSpec as PiecesSpec
from llmfactory.data.tokenizer.train_spec import SentencepieceBpe as SentencepieceBpe
from llmfactory.data.tokenizer.train_spec import Split as Split
from llmfactory.data.tokenizer.train_spec import Unigram as Unigram
from llmfactory.data.tokenizer.train_spec import Unknown as Unknown
from llmfactory.data.tokenizer.train_spec import WordLevel as WordLevel
from llmfactory.data.tokenizer.train_spec import Wordpiece as Wordpiece
