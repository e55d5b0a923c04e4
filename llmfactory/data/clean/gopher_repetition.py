"""Rules against repetition within a page (Rae et al. 2021, appendix A.1.1, table A1).

The paper's: lines and paragraphs that stood above already, as a share of all and of the characters; the characters in the most
frequent sequence of 2, 3, 4 words; the characters in all sequences of 5 to 10 words that stood above already, each character
counted once. As datatrove reads it, and so do we: shares are of the page's characters, white space included; of sequences that are
equally frequent the first one counts, with the spaces in it; sequences that are found do not overlap, and have no spaces.
Two sequences are the same if all their words are; datatrove glues the words together, so that "1 11" is "11 1" to it.

Ours: in a text with Chinese characters or kana each of these is a word, and a sequence has no spaces.

How it is fast: a page in which 5 words in a row hardly ever come twice cannot have longer ones that do, and no longer sequence is
more frequent than the most frequent pair. Where these bounds decide, nothing else is counted; where they do not, all of it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import GopherRepetition
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

TOP, DUPLICATE = 2, 5
"""Words in the shortest sequence of the two kinds."""
PARAGRAPH_END, LINE_END = re.compile("\n{2,}"), re.compile("\n+")
Ngram = tuple[str, ...]


class GopherRepetitionRules(Step):
    def __init__(self, spec: GopherRepetition) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"gopher_repetition/1 {self.spec}"

    def apply(self, page: Page) -> Outcome:
        if not page.text:
            return Drop("empty")
        return self._pieces(page) or self._most_frequent(page) or self._duplicate(page) or Kept(page.text)

    def _pieces(self, page: Page) -> Drop | None:
        spec, text = self.spec, page.text
        if "\n" not in text:
            return None
        for name, pieces, most, most_characters in (
            ("paragraphs", PARAGRAPH_END.split(text.strip()), spec.duplicate_paragraphs, spec.duplicate_paragraph_characters),
            ("lines", LINE_END.split(text), spec.duplicate_lines, spec.duplicate_line_characters),
        ):
            unique = set(pieces)
            if len(unique) == len(pieces):
                continue
            share = (len(pieces) - len(unique)) / len(pieces)
            if share > most:
                return Drop(f"duplicate {name}", f"{share:.3f} > {most:g}")
            share = (sum(map(len, pieces)) - sum(map(len, unique))) / len(text)
            if share > most_characters:
                return Drop(f"characters of duplicate {name}", f"{share:.3f} > {most_characters:g}")
        return None

    def _most_frequent(self, page: Page) -> Drop | None:
        words, size = page.words, len(page.text)
        most = len(words)
        longest = max(map(len, words), default=0)
        for n, limit in enumerate(self.spec.top_ngrams, TOP):
            if most * (n * longest + n - 1) <= limit * size or len(words) < n:
                continue  # even its longest words as often as the most frequent shorter sequence would not be too much
            ngram, count = Counter(ngrams(words, n)).most_common(1)[0]
            most = count
            length = sum(map(len, ngram)) + (0 if page.unspaced else n - 1)
            if length * count / size > limit:
                return Drop(f"most frequent {n} words", f"{length * count / size:.3f} > {limit:g}: {' '.join(ngram)[:80]!r}")
        return None

    def _duplicate(self, page: Page) -> Drop | None:
        limits, words, size = self.spec.duplicate_ngrams, page.words, len(page.text)
        if not limits or len(set(ngrams(words, DUPLICATE))) == max(0, len(words) - DUPLICATE + 1):
            return None
        if _covered(words, DUPLICATE) <= min(limits) * size:
            return None
        for n, limit in enumerate(limits, DUPLICATE):
            share = duplicate_characters(words, n) / size
            if share > limit:
                return Drop(f"duplicate sequences of {n} words", f"{share:.3f} > {limit:g}")
        return None


def ngrams(words: Sequence[str], n: int) -> zip[Ngram]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _covered(words: Sequence[str], n: int) -> int:
    """Characters of all words in sequences of n that stood above already, overlapping ones included."""
    seen: set[Ngram] = set()
    total = end = 0
    for start, ngram in enumerate(ngrams(words, n)):
        if ngram in seen:
            total += sum(map(len, words[max(start, end) : start + n]))
            end = start + n
        else:
            seen.add(ngram)
    return total


def duplicate_characters(words: Sequence[str], n: int) -> int:
    """Characters of sequences of n that stood above already; what follows one that did begins behind it."""
    seen: set[Ngram] = set()
    total = end = 0
    for start, ngram in enumerate(ngrams(words, n)):
        if start < end:
            continue
        if ngram in seen:
            total += sum(map(len, ngram))
            end = start + n
        else:
            seen.add(ngram)
    return total
