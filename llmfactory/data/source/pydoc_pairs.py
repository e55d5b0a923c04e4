"""Preferences: a function's own docstring is chosen, that of another function of the same module is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfactory.data.source.pydoc_items import Item, ItemSource, some
from llmfactory.data.source.spec import PydocPairs


class PydocPreferences(ItemSource):
    def __init__(self, spec: PydocPairs) -> None:
        ItemSource.__init__(self, spec)
        self.rejected = spec.rejected

    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        rejected = some(item, others, self.rejected)
        return [{"prompt": item.question, "chosen": item.answer, "rejected": other.answer} for other in rejected]
