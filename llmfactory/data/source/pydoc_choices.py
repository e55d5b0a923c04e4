"""Multiple choice: the right docstring among those of other functions of the same module, as rankings with the right one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfactory.data.source.pydoc_items import Item, ItemSource, some
from llmfactory.data.source.spec import PydocChoices


class PydocMultipleChoice(ItemSource):
    def __init__(self, spec: PydocChoices) -> None:
        ItemSource.__init__(self, spec)
        self.choices = spec.choices

    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        wrong = list(dict.fromkeys(other.answer for other in some(item, others, len(others))))[: self.choices - 1]
        if len(wrong) < self.choices - 1:
            return []
        return [{"prompt": item.question, "answers": [item.answer, *wrong], "scores": [1.0, *[0.0] * len(wrong)]}]
