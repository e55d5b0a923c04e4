"""Parts of documents that come again in others: what lines.py and paragraphs.py share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.comparison import Comparison, Copies, Evidence, Int64, Keys
from llmfactory.data.clean.dedup_spec import PiecesSpec
from llmfactory.data.clean.folded import digests, folded
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.remains import remains
from llmfactory.data.clean.shingles import UNICODE
from llmfactory.data.clean.step import Outcome

VERSION = 1


class PieceComparison(Comparison):
    """The first document that has a part keeps it; where `documents` is 1, it keeps the first one only."""

    what: ClassVar[str]
    """What the parts are called in reports."""

    def __init__(self, spec: PiecesSpec) -> None:
        self.spec = spec

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """Parts that make up the text when they are joined."""

    def fingerprint(self) -> str:
        return f"{self.what} {VERSION} {UNICODE} {self.spec!r}"

    def keys(self, pages: Sequence[Page]) -> Keys:
        page, item, texts = [], [], []
        for number, its in enumerate(pages):
            for place, piece in enumerate(self.split(its.text)):
                if len(piece) >= self.spec.min_characters:
                    page.append(number)
                    item.append(place)
                    texts.append(folded(piece, self.spec))
        long = np.array([len(text) >= self.spec.min_characters for text in texts], bool)
        return Keys(np.array(page, np.int64)[long], np.array(item, np.int64)[long], digests(texts)[long])

    def copies(self, key: NDArray[np.uint64], document: Int64, item: Int64, evidence: Evidence) -> Copies:
        found = super().copies(key, document, item, evidence)
        if self.spec.documents == 1 or not len(key):
            return found
        new_key = np.concatenate([[True], key[1:] != key[:-1]])
        new_document = new_key | np.concatenate([[True], document[1:] != document[:-1]])
        documents = np.add.reduceat(new_document, np.flatnonzero(new_key), dtype=np.int64)  # of each key
        common = documents[np.cumsum(new_key) - 1] >= self.spec.documents
        gone = common[~new_key] & (found.document != found.first)
        return Copies(found.document[gone], found.item[gone], found.first[gone])

    def apply(self, page: Page, items: Int64) -> Outcome:
        pieces = self.split(page.text)
        gone = set(items.tolist())
        left = "".join(piece for place, piece in enumerate(pieces) if place not in gone)
        return remains(page.text, left.strip("\r\n"), f"repeated {self.what}", len(gone), self.spec.min_left)
