"""Documents of a class, by the probability that a classifier of this project gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.clean.models import Models
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Classifier
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

VERSION = 1
DIGITS = 4
"""Decimals that count, so that the last bits of a sum decide nothing."""


class OfClass(Step):
    def __init__(self, spec: Classifier, models: Models) -> None:
        assert spec.init is not None
        assert spec.label is not None
        self.spec, self.models, self.init, self.label = spec, models, spec.init, spec.label

    def fingerprint(self) -> str:
        return f"classifier {VERSION} {self.models.fingerprint(self.init)} {self.label!r} {self.spec.threshold}"

    @cached_property
    def _classify(self) -> Callable[[Sequence[str]], list[dict[str, float]]]:
        return self.models.classifier(self.init)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_classify"}

    def apply(self, page: Page) -> Outcome:
        return self.apply_many([page])[0]

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        found = self._classify([page.text for page in pages])
        return [self._judged(page, classes) for page, classes in zip(pages, found, strict=True)]

    def _judged(self, page: Page, classes: Mapping[str, float]) -> Outcome:
        if self.label not in classes:
            known = ", ".join(classes)
            raise UserError(f"data.clean.classifier.label={self.label} is no class of {self.init}, which tells apart: {known}")
        probability = round(classes[self.label], DIGITS)
        if probability < self.spec.threshold:
            return Drop("another class", f"p({self.label}) {probability:.{DIGITS}f} < {self.spec.threshold:g}")
        return Kept(page.text, label=max(classes, key=classes.__getitem__))
