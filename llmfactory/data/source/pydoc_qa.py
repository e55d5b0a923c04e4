"""Instructions: "What does os.path.join(a, *p) do?", answered by the first paragraph of the docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfactory.data.source.pydoc_items import Item, ItemSource


class PydocQuestions(ItemSource):
    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        return [{"instruction": item.question, "output": item.answer}]
