"""Steps that compare pages of the whole corpus: two maps with a group-by between them, so that it works over any number of machines.

1. `keys`, page by page: numbers that can be alike only where there may be something alike.
2. `copies`, for each part of the keys by itself: which item is a copy of which.
3. `verdicts`, once, over all parts: what is a copy in the end.
4. `apply`, page by page: the page without its copies, or no page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Outcome

Int64 = NDArray[np.int64]
Evidence = Callable[[Int64], NDArray[np.generic]]
"""Numbers of documents -> what `Keys.evidence` had for them, a row each."""


@dataclass(frozen=True, slots=True)
class Keys:
    """K keys of P pages."""

    page: Int64
    """[K], number of the page among the P."""
    item: Int64
    """[K], what within the page the key stands for (a line, a band of a signature), below 2^31."""
    key: NDArray[np.uint64]
    """[K]"""
    evidence: NDArray[np.generic] | None = None
    """[P, ...], what is kept for `copies` and `verdicts` (a signature); None: nothing."""


@dataclass(frozen=True, slots=True)
class Copies:
    """C items, each a copy of another. Numbers of documents are those of the whole corpus; of two the first has the smaller one."""

    document: Int64
    """[C]"""
    item: Int64
    """[C]"""
    first: Int64
    """[C], the document that the item is a copy from; it may be the same one (a line that comes twice)."""

    @classmethod
    def none(cls) -> Copies:
        return cls(*(np.empty(0, np.int64) for _ in range(3)))


class Comparison(ABC):
    @abstractmethod
    def fingerprint(self) -> str:
        """As `Step.fingerprint`."""

    @abstractmethod
    def keys(self, pages: Sequence[Page]) -> Keys: ...

    def copies(self, key: NDArray[np.uint64], document: Int64, item: Int64, evidence: Evidence) -> Copies:
        """Of keys that are sorted by (key, document, item), all that are alike among them. Here: each is a copy of the first one."""
        if not len(key):
            return Copies.none()
        begins = np.concatenate([[True], key[1:] != key[:-1]])
        first = document[np.maximum.accumulate(np.where(begins, np.arange(len(key)), 0))]
        return Copies(document[~begins], item[~begins], first[~begins])

    def verdicts(self, copies: Copies, evidence: Evidence) -> Copies:
        """Of all parts' copies together, those that count. Here: all."""
        return copies

    @abstractmethod
    def apply(self, page: Page, items: Int64) -> Outcome:
        """The page whose `items`, sorted, are copies; called for pages that have any."""
