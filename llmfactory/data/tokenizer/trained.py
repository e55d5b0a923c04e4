"""What the tokenizers that are learned from a corpus have in common."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.data.tokenizer.base_spec import Normalization, TrainedSpec
from llmfactory.data.tokenizer.tokenizer import TokenizerSource, check_size

END = "<|endoftext|>"
"""The end of a document."""


class Learned(TokenizerSource):
    """Base of the sources that look at text. Ids: the end of a document, further special tokens, then what was learned."""

    def __init__(self, spec: TrainedSpec, vocab_size: int, least: int, why: str, learner: str = "tokenizers") -> None:
        """`vocab_size`: the model's. `least`: fewest ids that can do, special tokens of the spec not counted, and `why`, in words.
        `learner`: the package that learns."""
        self.vocab_size = vocab_size if spec.vocab_size is None else spec.vocab_size
        self.sample_bytes = spec.train_bytes
        self.specials = [token for token in spec.special_tokens if token != END]
        self.form = spec.normalization
        self.told = f"{stem(type(spec))} {self.vocab_size} {dataclasses.asdict(spec)} {learner} {version(learner)}"
        if self.vocab_size < least + len(self.specials):
            also = f", and {len(self.specials)} for data.tokenizer.special_tokens" if self.specials else ""
            raise UserError(f"the model has {self.vocab_size} ids (model.vocab_size); {why}{also}. Try model.vocab_size=4096")
        check_size(self.vocab_size, vocab_size, f"data.tokenizer.vocab_size={self.vocab_size}")


def form_of(normalization: Normalization) -> list[Any]:
    """Normalizers of the library."""
    from tokenizers import normalizers

    forms = {Normalization.nfc: normalizers.NFC, Normalization.nfkc: normalizers.NFKC}
    return [forms[normalization]()] if normalization in forms else []


def normal(texts: Iterable[str], normalization: Normalization) -> Iterator[str]:
    """Texts in the form in which they will be encoded."""
    steps = form_of(normalization)
    return (steps[0].normalize_str(text) for text in texts) if steps else iter(texts)


def characters(texts: Iterable[str], most: int, coverage: float = 1.0) -> list[str]:
    """The most frequent characters that make `coverage` of the texts, `most` at most; of equally frequent ones the lower first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    found: list[str] = []
    total, seen = counts.total(), 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(found) == most or seen >= coverage * total:
            break
        found.append(character)
        seen += count
    return found


def without_others(texts: Iterable[str], known: Sequence[str]) -> Iterator[str]:
    """The texts cut at every character that is not known, so that none of its neighbours seem to stand together."""
    others = re.compile(f"[^{''.join(map(re.escape, known))}]+") if known else re.compile("(?s:.+)")
    return (piece for text in texts for piece in others.split(text) if piece)
