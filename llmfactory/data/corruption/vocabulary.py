"""The ids that corruptions work with: those of the text, and special ones (masks, sentinels, mode tokens).

A special token is the tokenizer's own where it has one of that name; otherwise it takes one of the highest ids of the model's
vocabulary, the first special the highest, as T5's sentinels do. The tokenizer must leave that room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfactory.core.special import Special
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokens import TokenFile


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Of a model and the tokenizer that it reads with."""

    size: int
    """Rows of the model's embedding."""
    tokenizer: Tokenizer
    texts: Sequence[TokenFile] = ()
    """The training text of each source, for tasks that need to know how frequent its tokens are; none: it is not at hand."""

    @property
    def end_id(self) -> int:
        return self.tokenizer.end_id

    @property
    def text_size(self) -> int:
        """Ids below it may stand in text."""
        return min(self.tokenizer.vocab_size, self.size)

    def ids(self, specials: Sequence[Special]) -> list[int]:
        """The id of each special token. Those that the tokenizer lacks are given from the top, in this order."""
        known = self.tokenizer.specials()
        own = [next((known[name] for name in special if name in known), None) for special in specials]
        free = iter(range(self.size - 1, -1, -1))
        return [next(free) if found is None else found for found in own]
