"""FineWeb's own rules (Penedo et al. 2024, section 3.6), against lists, menus and repeated lines.

The paper's: at least 12 % of the lines end with a terminal mark; at most 67 % have 30 characters or fewer; at most 1 % (in the paper
10 %, in the released configuration 1 %) of the characters stand in lines that stood above already; at most 0.3 line ends a word
(in the released configuration only). Lines of white space are no lines. As in datatrove, terminal marks are Unicode's of all scripts,
and a quotation mark is none.

Ours: a Chinese character or kana is a word, and as wide as two characters; a quotation mark behind 。！？ ends a line well.
"""

from __future__ import annotations

from llmfactory.data.clean.characters import TERMINAL, count_unspaced, ends_sentence
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Fineweb
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step


class FinewebRules(Step):
    def __init__(self, spec: Fineweb) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"fineweb/1 {self.spec}"

    def apply(self, page: Page) -> Outcome:
        spec, text = self.spec, page.text
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return Drop("empty")
        share = _count_terminal(page, lines) / len(lines)
        if share < spec.min_terminal:
            return Drop("lines without a terminal mark", f"{share:.3f} of the lines have one < {spec.min_terminal:g}")
        share = _count_short(page, lines, spec.short_line) / len(lines)
        if share > spec.max_short:
            return Drop("short lines", f"{share:.3f} > {spec.max_short:g}")
        line_ends = text.count("\n")
        unique = set(lines)
        if len(unique) < len(lines):
            share = (sum(map(len, lines)) - sum(map(len, unique))) / (len(text) - line_ends)
            if share > spec.max_duplicate:
                return Drop("characters of duplicate lines", f"{share:.3f} > {spec.max_duplicate:g}")
        ratio = line_ends / max(1, len(page.words)) if line_ends else 0.0
        if ratio > spec.max_line_ends:
            return Drop("list", f"{ratio:.3f} line ends a word > {spec.max_line_ends:g}")
        return Kept(text)


def _count_terminal(page: Page, lines: list[str]) -> int:
    if page.unspaced:
        return sum(map(ends_sentence, lines))
    return sum([line[-1] in TERMINAL for line in lines])


def _count_short(page: Page, lines: list[str], most: int) -> int:
    short = [line for line in lines if len(line) <= most]
    return sum(len(line) + count_unspaced(line) <= most for line in short) if page.unspaced else len(short)
