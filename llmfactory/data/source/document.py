"""A document, a source of them, and the account of everything that a source had to leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 5
"""How many dropped records of a reason are shown."""


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


@dataclass(slots=True)
class Dropped:
    """Records that were left out for one reason."""

    documents: int = 0
    bytes: int = 0
    samples: list[str] = field(default_factory=list)
    """The first few, as `where: what`."""


@dataclass(slots=True)
class Drops:
    """Everything that was left out, by reason. Nothing is ever left out silently."""

    by_reason: dict[str, Dropped] = field(default_factory=dict)

    def add(self, reason: str, sample: str, size: int = 0) -> None:
        dropped = self.by_reason.setdefault(reason, Dropped())
        dropped.documents += 1
        dropped.bytes += size
        if len(dropped.samples) < SAMPLES:
            dropped.samples.append(sample)

    def plain(self) -> dict[str, dict[str, Any]]:
        return {
            reason: {"documents": dropped.documents, "bytes": dropped.bytes, "samples": dropped.samples}
            for reason, dropped in sorted(self.by_reason.items())
        }


class Source(ABC):
    """Documents in an order that is the same in every process."""

    max_overlap: float = 0.5
    """Share of a held-out document's 13-word sequences that may also stand in the training part; above it, it is dropped."""
    can_cut: bool = True
    """Whether one document may be cut in two where the documents are too few or too large to hold out a share of them."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that `documents` depends on: contents and options, not names of folders or dates."""

    @abstractmethod
    def documents(self, drops: Drops) -> Iterator[Document]:
        """All of them, in order. What is left out goes to `drops`; what cannot be read at all is a `UserError`."""

    @abstractmethod
    def size(self) -> int:
        """About how many bytes `documents` reads: for the progress bar only."""
