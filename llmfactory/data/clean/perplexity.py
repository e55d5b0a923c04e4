"""Documents by how unlikely a language model finds them (Wenzek et al. 2020, section 3.4).

bits per byte = sum of -log2 p(token) / bytes of UTF-8;   perplexity per word = exp(sum of -ln p(token) / words),
over all tokens of the text and the end behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from llmfactory.data.clean.models import Models
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Part, Perplexity, Unlikely
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

VERSION = 1
DIGITS = 4
"""Decimals that count, so that the last bits of a sum decide nothing."""
LARGEST = 700.0
"""Nats of which float64 has the exponential."""


class LikelyText(Step):
    def __init__(self, spec: Perplexity, models: Models) -> None:
        assert spec.init is not None
        self.spec, self.models, self.init = spec, models, spec.init

    def fingerprint(self) -> str:
        spec = self.spec
        options = [spec.measure.name, spec.most, spec.least, spec.bounds, sorted(part.name for part in spec.keep)]
        return f"perplexity {VERSION} {self.models.fingerprint(self.init)} {options}"

    @cached_property
    def _likelihood(self) -> Callable[[Sequence[str]], list[tuple[float, int]]]:
        return self.models.likelihood(self.init)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_likelihood"}

    def apply(self, page: Page) -> Outcome:
        return self.apply_many([page])[0]

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        found = self._likelihood([page.text for page in pages])
        return [self._judged(page, nats) for page, (nats, _) in zip(pages, found, strict=True)]

    def _judged(self, page: Page, nats: float) -> Outcome:
        spec, value = self.spec, round(self._measured(page, nats), DIGITS)
        told = f"{spec.measure.name} {value:.{DIGITS}f}"
        if spec.most is not None and value > spec.most:
            return Drop("too unlikely", f"{told} > {spec.most:g}")
        if spec.least is not None and value < spec.least:
            return Drop("too likely", f"{told} < {spec.least:g}")
        if not spec.bounds:
            return Kept(page.text)
        part = next((part for part, bound in zip(Part, spec.bounds, strict=False) if value <= bound), Part.tail)
        return Kept(page.text, label=part.name) if part in spec.keep else Drop(part.name, told)

    def _measured(self, page: Page, nats: float) -> float:
        if self.spec.measure is Unlikely.bits_per_byte:
            return nats / math.log(2) / max(1, page.size)
        return math.exp(min(nats / max(1, len(page.words)), LARGEST))
