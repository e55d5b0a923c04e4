"""A document, a source of them in pieces, and the account of everything that a source could not read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmfactory.data.source.account import Account


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is read as a whole: nothing is predicted across its ends."""

    name: str
    """Where it comes from: a file, a file and line, a module."""
    text: str
    group: str
    """Documents of one group are either all held out or all trained on."""
    evaluated: bool = True
    """False: trained on, and left out where its group is held out."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a source that can be read by itself: a file, some of its bytes, a member of an archive."""

    name: str
    size: int
    """About how many bytes are read for it: for the progress bar, and to deal units to processes."""
    place: tuple[Any, ...] = ()
    """What the source needs to find it: plain data."""


class Source(ABC):
    """Documents in an order that is the same in every process."""

    max_overlap: float = 0.5
    """Share of a held-out document's 13-word sequences that may also stand in the training part; above it, it is dropped."""
    can_cut: bool = True
    """Whether one document may be cut in two where the documents are too few or too large to hold out a share of them."""
    bad_share: float = 0.0
    """Share of the records that may be unreadable; 0: the first one is an error."""

    def weights(self) -> Mapping[str, int] | None:
        """Bytes of each group that decide which groups are held out, where a source shall hold out the same ones as another does
        at the same share; None: the bytes of its own documents."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that `documents` depends on: contents and options, not names of folders or dates."""

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All pieces, in order. They depend on the contents alone, not on who reads them."""

    @abstractmethod
    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        """All of a piece, in order. Records that cannot be read go to `account.bad`, empty ones to `account.left_out`; what
        cannot be read at all is a `UserError` that names it."""
