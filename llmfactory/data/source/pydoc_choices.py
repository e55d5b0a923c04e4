"""Multiple choice: the right docstring among those of other functions of the same module, as rankings with the right one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfactory.data.source.pydoc_items import Item, ItemSource, some
from llmfactory.data.source.spec import PydocChoices


class PydocMultipleChoice(ItemSource):
    def __init__(self, spec: PydocChoices) -> None:
        ItemSource.__init__(self, spec)
        self.choices, self.rankings = spec.choices, spec.rankings

    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        wrong = list(dict.fromkeys(other.answer for other in some(item, others, len(others))))
        size = self.choices - 1
        scores = [1.0, *[0.0] * size]
        return [
            {"prompt": item.question, "answers": [item.answer, *wrong[start : start + size]], "scores": scores}
            for start in range(0, len(wrong) - size + 1, size)
        ][: self.rankings]
