"""Rules of the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2).

The paper's: lines must end with a terminal mark or a quotation mark and have three words; those that speak of JavaScript go, and with
them those about cookies and terms of use; pages with "lorem ipsum" or a curly bracket and those of fewer than five sentences are
dropped; marks of citations go. The order is that of the published code (tensorflow-datasets, c4_utils), and of datatrove: a bracket
in a line that is taken out anyway does no harm; what stands behind a citation mark at the end of a line is no terminal mark.

Ours: sentences are counted by their marks, not by a trained model (Punkt), so that an abbreviation ends one; 。！？ are terminal, also
within quotation marks; ten Chinese phrases of cookie notices and the like; no space is left where a citation mark began a line.
"""

from __future__ import annotations

import re
from collections import Counter

from llmfactory.data.clean.characters import CLOSING, WIDE_TERMINAL, count_sentences, words_of
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import C4
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
TERMINAL = (".", "?", "!", '"', "'")
ELLIPSIS = ("...", "……")
POLICIES = ("terms of use", "privacy policy")
COOKIES = ("cookie policy", "uses cookies", "use of cookies", "use cookies", "使用cookie", "使用 cookie")
CHINESE_POLICIES = (
    "隐私政策",
    "隱私政策",
    "隐私权政策",
    "隱私權政策",
    "使用条款",
    "使用條款",
    "服务条款",
    "服務條款",
)
PLACEHOLDER, SCRIPT, CURLY = "lorem ipsum", "javascript", "{"


class C4Rules(Step):
    def __init__(self, spec: C4) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"c4/1 {self.spec}"

    def apply(self, page: Page) -> Outcome:
        spec, text = self.spec, page.text
        low = text.lower()
        # What does not stand in the page is not looked for in its lines.
        placeholder = spec.placeholder and PLACEHOLDER in low
        script = spec.boilerplate and SCRIPT in low
        policies = _policies(page, low) if spec.boilerplate else []
        curly, citations = spec.curly and CURLY in text, spec.citations and "[" in text
        removed: Counter[str] = Counter()
        kept, sentences = [], 0
        for line in page.lines:
            line = line.strip()
            words = words_of(line) if page.unspaced else line.split()
            if len(line) > spec.max_word_length and max(map(len, words), default=0) > spec.max_word_length:
                removed["lines with a long word taken out"] += 1
                continue
            if citations:
                line, found = CITATION.subn("", line)
            else:
                found = 0
            if spec.terminal and not _is_terminal(line):
                removed["lines without a terminal mark taken out" if line else "empty lines taken out"] += 1
                continue
            if len(words) < spec.min_words:
                removed["lines of few words taken out"] += 1
                continue
            lowered = line.lower() if placeholder or script or policies else ""
            if placeholder and PLACEHOLDER in lowered:
                return Drop("lorem ipsum", line[:80])
            if script and SCRIPT in lowered:
                removed["lines about JavaScript taken out"] += 1
                continue
            if curly and CURLY in line:
                return Drop("curly bracket", line[:80])
            if policies and any(phrase in lowered for phrase in policies):
                removed["lines about cookies or terms taken out"] += 1
                continue
            if found:
                removed["citation marks"] += found
            if sentences < spec.min_sentences:
                sentences += count_sentences(line)
            kept.append(line.strip())
        if sentences < spec.min_sentences:
            return Drop("too few sentences", f"{sentences} < {spec.min_sentences}")
        left = "\n".join(kept).strip()
        if not removed and left != text:
            removed["white space taken out"] = 1
        return Kept(left, removed)


def _policies(page: Page, low: str) -> list[str]:
    """Phrases about cookies and terms that stand in the page."""
    phrases = [*POLICIES, *(COOKIES if "cookie" in low else ()), *(CHINESE_POLICIES if page.unspaced else ())]
    return [phrase for phrase in phrases if phrase in low]


def _is_terminal(line: str) -> bool:
    if line.endswith(TERMINAL):
        return not line.endswith(ELLIPSIS)
    last = line[-1:]
    return last in WIDE_TERMINAL or (last in CLOSING and line[-2:-1] in WIDE_TERMINAL)
