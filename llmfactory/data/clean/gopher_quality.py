"""Quality rules of MassiveText (Rae et al. 2021, appendix A.1.1, "Quality Filtering").

The paper's: 50 to 100,000 words of 3 to 10 characters on average; at most 0.1 hashes or ellipses a word; at most 90 % of the lines
with a bullet in front, at most 30 % with an ellipsis at the end; a letter in 80 % of the words; two of eight stop words.
As datatrove reads it, and so do we: words are cut at white space; those of marks only count neither for the number nor for the length
of words, but for the shares.

Ours, and of no effect on a text without Chinese characters or kana: each of these is a word, the marks between them are none, and
the length of words is that of the others, looked at only where they are the greater part; Chinese stop words; 。 is no letter either.
"""

from __future__ import annotations

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import GopherQuality
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

SOME = 100
"""Words at the beginning that mostly hold the stop words needed already."""


class GopherQualityRules(Step):
    def __init__(self, spec: GopherQuality) -> None:
        self.spec = spec
        self.stop_words = frozenset(spec.stop_words)

    def fingerprint(self) -> str:
        return f"gopher_quality/1 {self.spec}"

    def apply(self, page: Page) -> Outcome:
        return self._words(page) or self._lines(page) or self._letters(page) or Kept(page.text)

    def _words(self, page: Page) -> Drop | None:
        """How many words, and how long; how many hashes and ellipses."""
        spec, words = self.spec, page.words
        if self._usual(page):
            return self._symbols(page)
        count = len(words) - len(page.mark_words)
        if count < spec.min_words:
            return Drop("too few words", f"{count} < {spec.min_words}")
        if count > spec.max_words:
            return Drop("too many words", f"{count} > {spec.max_words}")
        length = _mean_length(page, count)
        if length is not None and length < spec.min_mean_length:
            return Drop("short words", f"{length:.2f} characters on average < {spec.min_mean_length:g}")
        if length is not None and length > spec.max_mean_length:
            return Drop("long words", f"{length:.2f} characters on average > {spec.max_mean_length:g}")
        return self._symbols(page)

    def _usual(self, page: Page) -> bool:
        """Whether number and length of words are right however many of them are of marks only: seen without looking at each."""
        spec, count = self.spec, len(page.words)
        least = count - page.odd_starts
        if page.unspaced or least < spec.min_words or count > spec.max_words:
            return False
        shortest, longest = (page.word_characters - page.shape.count(b".")) / count, page.word_characters / least
        return shortest >= spec.min_mean_length and longest <= spec.max_mean_length

    def _symbols(self, page: Page) -> Drop | None:
        spec, words = self.spec, page.words
        hashes = page.text.count("#") / len(words)
        if hashes > spec.max_symbols:
            return Drop("hashes", f"{hashes:.3f} a word > {spec.max_symbols:g}")
        ellipses = page.ellipses / len(words)
        if ellipses > spec.max_symbols:
            return Drop("ellipses", f"{ellipses:.3f} a word > {spec.max_symbols:g}")
        return None

    def _lines(self, page: Page) -> Drop | None:
        spec, text = self.spec, page.text
        # A character is in no more lines than it comes, and there are as many lines as line ends at least: both are cheaper to count.
        line_ends = text.count("\n")
        if text.count("-") + text.count("•") > spec.max_bullets * line_ends:
            lines = page.lines
            share = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            if share > spec.max_bullets:
                return Drop("lines with bullets", f"{share:.3f} > {spec.max_bullets:g}")
        if page.ellipses > spec.max_ellipses * line_ends:
            lines = page.lines
            share = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
            if share > spec.max_ellipses:
                return Drop("lines that end with an ellipsis", f"{share:.3f} > {spec.max_ellipses:g}")
        return None

    def _letters(self, page: Page) -> Drop | None:
        spec, words = self.spec, page.words
        share = (len(words) - page.odd_starts) / len(words)
        if share < spec.min_alphabetic:
            share = (len(words) - page.letterless_words) / len(words)
        if share < spec.min_alphabetic:
            return Drop("words without a letter", f"{share:.3f} of the words have one < {spec.min_alphabetic:g}")
        if len(self.stop_words.intersection(words[:SOME])) < spec.min_stop_words:
            found = len(self.stop_words.intersection(words))
            if found < spec.min_stop_words:
                return Drop("stop words", f"{found} < {spec.min_stop_words}")
        return None


def _mean_length(page: Page, count: int) -> float | None:
    """Characters a word, of words that are more than one character by nature; None: most are not."""
    total = page.word_characters - sum(map(len, page.mark_words))
    if page.mostly_unspaced:
        return None
    if page.unspaced:
        total, count = total - page.single_words, count - page.single_words
    return total / count
