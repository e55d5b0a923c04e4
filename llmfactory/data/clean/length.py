"""Pages that are too short or too long."""

from __future__ import annotations

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Length
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step


class LengthLimits(Step):
    def __init__(self, spec: Length) -> None:
        self.spec = spec
        self.limits = [
            (unit, low, high)
            for unit, low, high in (
                ("characters", spec.min_characters, spec.max_characters),
                ("bytes", spec.min_bytes, spec.max_bytes),
                ("words", spec.min_words, spec.max_words),
            )
            if low is not None or high is not None
        ]

    def fingerprint(self) -> str:
        return f"length/1 {self.spec}"

    def apply(self, page: Page) -> Outcome:
        for unit, low, high in self.limits:
            size = _size(page, unit)
            if low is not None and size < low:
                return Drop(f"too few {unit}", f"{size} < {low}")
            if high is not None and size > high:
                return Drop(f"too many {unit}", f"{size} > {high}")
        return Kept(page.text)


def _size(page: Page, unit: str) -> int:
    if unit == "characters":
        return len(page.text)
    return page.size if unit == "bytes" else len(page.words)
