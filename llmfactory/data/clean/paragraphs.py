"""Paragraphs, parted by blank lines, that other documents have, too."""

from __future__ import annotations

import re

from llmfactory.data.clean.pieces import PieceComparison

BLANK = re.compile(r"\n\s*\n")


class ParagraphComparison(PieceComparison):
    what = "paragraphs"

    def split(self, text: str) -> list[str]:
        ends = [match.end() for match in BLANK.finditer(text)]
        return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]
