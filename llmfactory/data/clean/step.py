"""What a step does: it looks at pages, one by one, and keeps, changes or drops each.

A step is a pure function of a page's text and of its own options, so that it can run in any process, on any part of the corpus,
in any order, and give the same. What compares pages with each other is a `Comparison` (comparison.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmfactory.data.clean.page import Page


@dataclass(frozen=True, slots=True)
class Kept:
    """The page goes on."""

    text: str
    """Changed or not."""
    changes: Mapping[str, int] = field(default_factory=dict)
    """What was changed, by reason: how many times. Empty where nothing was."""
    label: str | None = None
    """What the step found the page to be (its language), for a histogram."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The page is left out."""

    reason: str
    """One of a few of the step; counted."""
    detail: str = ""
    """The figure that decided; shown with samples."""


Outcome = Kept | Drop


class Step(ABC):
    block_bytes: int | None = None
    """How much text `apply_many` must see at once, where the outcome depends on it; None: any."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash or text of everything that outcomes depend on besides the page: options, contents of files, a version of the code."""

    @abstractmethod
    def apply(self, page: Page) -> Outcome: ...

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        """As `apply` of each; overridden where many at once are cheaper."""
        return [self.apply(page) for page in pages]
