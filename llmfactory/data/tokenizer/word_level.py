"""Whole words: runs of letters and digits, and runs of other signs, each an id of its own if it is frequent enough.

The tokenizer of word vectors and of language models before subwords. What it does not know becomes the unknown token, and white
space is not kept, so a text does not come back from its ids and bits per byte mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import WordLevel
from llmfactory.data.tokenizer.tokenizer import Tokenizer, TokenizerSource, check_size
from llmfactory.data.tokenizer.trained import END

UNKNOWN = "<unk>"


class WordCounter(TokenizerSource):
    def __init__(self, spec: WordLevel, vocab_size: int) -> None:
        self.spec = spec
        self.vocab_size = vocab_size if spec.vocab_size is None else spec.vocab_size
        self.sample_bytes = spec.train_bytes
        check_size(self.vocab_size, vocab_size, f"data.tokenizer.vocab_size={self.vocab_size}")

    def fingerprint(self) -> str:
        import tokenizers

        spec = self.spec
        return f"word_level {self.vocab_size} {spec.min_count} {spec.lowercase} {spec.train_bytes} tokenizers {tokenizers.__version__}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        from tokenizers import Tokenizer as Inner
        from tokenizers import models, normalizers, pre_tokenizers, trainers

        inner = Inner(models.WordLevel(unk_token=UNKNOWN))
        if self.spec.lowercase:
            inner.normalizer = normalizers.Lowercase()
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.vocab_size, min_frequency=self.spec.min_count, special_tokens=[END, UNKNOWN], show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
        end_id = inner.token_to_id(END)
        assert end_id is not None
        return HfTokenizer(inner, end_id)
