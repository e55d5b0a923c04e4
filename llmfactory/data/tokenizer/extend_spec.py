"""A tokenizer that another one becomes by learning from the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least
from llmfactory.core.special import Special
from llmfactory.data.tokenizer.base_spec import TokenizerSpec

if TYPE_CHECKING:
    from llmfactory.data.tokenizer.tokenizer import TokenizerSource


@dataclass(kw_only=True, slots=True)
class Extended(TokenizerSpec):
    """A tokenizer with new pieces for the text of the corpus (Cui et al. 2023, section 2); the old ones keep their ids."""

    base: str | None = None
    """Tokenizer file, published folder or run folder; None: that of `init` (stage=extend)."""
    new_tokens: int
    """Most pieces to add."""
    train_bytes: int = 20_000_000
    """How much text at most, in bytes, they are learned from: a sample of documents spread over the corpus."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "new_tokens", "train_bytes")

    def build(self, vocab_size: int, specials: Sequence[Special] = ()) -> TokenizerSource:
        from llmfactory.data.tokenizer.extended import Extension

        return Extension(self, vocab_size, specials)
