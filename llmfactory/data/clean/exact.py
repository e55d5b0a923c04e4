"""Documents with the same text (Lee et al. 2022, section 4.1; data/clean/folded.py says what is the same)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmfactory.data.clean.comparison import Comparison, Int64, Keys
from llmfactory.data.clean.dedup_spec import Exact
from llmfactory.data.clean.folded import digests, folded
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import UNICODE
from llmfactory.data.clean.step import Drop, Outcome

VERSION = 1


class ExactComparison(Comparison):
    def __init__(self, spec: Exact) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"{VERSION} {UNICODE} {self.spec!r}"

    def keys(self, pages: Sequence[Page]) -> Keys:
        keys = digests(folded(page.text, self.spec) for page in pages)
        return Keys(np.arange(len(pages)), np.zeros(len(pages), np.int64), keys)

    def apply(self, page: Page, items: Int64) -> Outcome:
        return Drop("the same as an earlier document")
