"""Lines that other documents have, too: menus, notices, forms of address. As web text is often extracted, a line is a paragraph."""

from __future__ import annotations

from llmfactory.data.clean.pieces import PieceComparison


class LineComparison(PieceComparison):
    what = "lines"

    def split(self, text: str) -> list[str]:
        return text.splitlines(keepends=True)
