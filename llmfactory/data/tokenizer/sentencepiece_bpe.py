"""Byte-pair encoding as SentencePiece does it: on characters, ▁ for a space, rare characters in bytes.

Learned by the `tokenizers` library, whose result depends neither on threads nor on the process. Merges are learned within words
(pieces.py says where text is cut) of at most 16 characters, theirs, too. Text is encoded without such cuts, as their program
and llama.cpp do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import BYTES, SPACE, add, cut_pattern, normalizer, pairs
from llmfactory.data.tokenizer.spec import SentencepieceBpe
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokenizer.trained import END, Learned, characters, form_of, normal, without_others

LONGEST = 16
"""Characters of a piece."""
LEAST = 258


class PieceTrainer(Learned):
    def __init__(self, spec: SentencepieceBpe, vocab_size: int) -> None:
        why = f"pieces need {LEAST}, for the bytes, the end of a document and a character at least"
        Learned.__init__(self, spec, vocab_size, LEAST, why)
        self.coverage, self.pattern = spec.coverage, cut_pattern(spec.split_digits)

    def fingerprint(self) -> str:
        return f"{self.told} {self.pattern}"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        spaced = [f"{SPACE}{text.replace(' ', SPACE)}" for text in normal(texts, self.form) if text]
        first = [END, *self.specials, *BYTES]
        room = self.vocab_size - len(first)
        known = characters(spaced, room, self.coverage)
        learned, merges = learn(without_others(spaced, known), known, room, self.pattern)
        vocab = {token: number for number, token in enumerate([*first, *learned])}
        inner = pairs(vocab, merges)
        inner.normalizer = normalizer(prefix=True, before=form_of(self.form))
        add(inner, [END, *self.specials])
        return HfTokenizer(inner, 0)


def learn(texts: Iterator[str], known: Sequence[str], size: int, pattern: str) -> tuple[list[str], list[tuple[str, str]]]:
    """`size` pieces at most, the `known` characters among them, and the merges that make the others."""
    import json

    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=list(known),
        limit_alphabet=len(known),
        max_token_length=LONGEST,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    model = json.loads(inner.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return learned, [tuple(merge) for merge in model["merges"]]
