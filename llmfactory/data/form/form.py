"""The interface of forms: between a document's text, as a source gives it, and the tokens of it that are kept.

A source of records (conversations, preferences) gives each as JSON; the form reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Outcome

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.data.pack.spec import PackSpec
    from llmfactory.data.tokenizer.tokenizer import Tokenizer
    from llmfactory.data.tokens import TokenFile


@dataclass(frozen=True, slots=True)
class Encoded:
    """A token sequence."""

    ids: Sequence[int] | NDArray[np.unsignedinteger]
    targets: NDArray[np.bool_] | None = None
    """[len(ids) + 1], which of the ids, and of the end behind them, the model learns to write; None: all."""
    cut: int = 0
    """Tokens that were cut off, because it was longer than allowed."""
    note: str = ""
    """What else rows need to know of it (JSON: a label, a score, names of pictures); kept beside the tokens."""


Sequences = list[Encoded] | None
"""Of a document."""


class BadDocument(UserError):
    """A document of those given that cannot be encoded."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        """Among the texts that `encode` was given."""


class Form(ABC):
    records: bool = False
    """Documents are JSON objects, one for each record; cleaning reads text, so only steps that compare whole documents fit."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Everything that `normalize` and `encode` depend on besides the text and the tokenizer."""

    @abstractmethod
    def normalize(self, page: Page) -> Outcome:
        """The document in the one way that the other methods read, or `Drop` with what is wrong with it: a bad record."""

    @abstractmethod
    def texts(self, text: str) -> Iterator[str]:
        """The texts in a document, to train a tokenizer on."""

    @abstractmethod
    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Sequences]:
        """Of each document the token sequences that it becomes: one, several that belong together (the sides of a pair), or none
        where it is longer than allowed; None where its template cannot write it, and it is to be left out. Raises `BadDocument`."""

    def specials(self) -> tuple[str, ...]:
        """Tokens that no text spells and that a tokenizer must have, so that one that is trained leaves room for them."""
        return ()

    def equip(self, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
        """The tokenizer as models of this data need it, with ids below `vocab_size`; it is what `encode` is given, and what is kept."""
        return tokenizer

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> Rows:
        """How token sequences become rows."""
        return pack.build(tokens, seq_len)
