"""Characters as tokens, the most frequent of the corpus; the others are spelled in bytes, or are the unknown token.

Said as byte pairs without a merge, which is how the library splits a text into characters.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import BYTES, add
from llmfactory.data.tokenizer.spec import Characters, Unknown
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokenizer.trained import END, Learned, characters, form_of, normal

UNKNOWN = "<unk>"


class CharacterCounter(Learned):
    def __init__(self, spec: Characters, vocab_size: int) -> None:
        self.others = list(BYTES) if spec.unknown is Unknown.bytes else [UNKNOWN]
        what = "the bytes" if spec.unknown is Unknown.bytes else "the unknown token"
        why = f"characters need {len(self.others) + 2}, for {what}, the end of a document and a character at least"
        Learned.__init__(self, spec, vocab_size, len(self.others) + 2, why)

    def fingerprint(self) -> str:
        return self.told

    def make(self, texts: Iterable[str]) -> Tokenizer:
        from tokenizers import Tokenizer as Inner
        from tokenizers import decoders, models

        first = [END, *self.specials, *self.others]
        known = characters(normal(texts, self.form), self.vocab_size - len(first))
        vocab = {token: number for number, token in enumerate([*first, *known])}
        in_bytes = UNKNOWN not in self.others
        inner = Inner(models.BPE(vocab, [], byte_fallback=in_bytes, unk_token=None if in_bytes else UNKNOWN))
        for form in form_of(self.form):
            inner.normalizer = form
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        add(inner, [END, *self.specials])
        return HfTokenizer(inner, 0)
