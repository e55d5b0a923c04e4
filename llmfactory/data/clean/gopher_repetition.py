"""Rules against repetition within a page (Rae et al. 2021, appendix A.1.1, table A1).

The paper's: lines and paragraphs that stood above already, as a share of all and of the characters; the characters in the most
frequent sequence of 2, 3, 4 words; the characters in all sequences of 5 to 10 words that stood above already, each character
counted once. As datatrove reads it, and so do we: shares are of the page's characters, white space included; of sequences that are
equally frequent the first one counts, with the spaces in it; sequences that are found do not overlap, and have no spaces.
Two sequences are the same if all their words are; datatrove glues the words together, so that "1 11" is "11 1" to it.

Ours: in a text with Chinese characters or kana each of these is a word, and a sequence has no spaces. Where most words are such, a
sequence has 1.6 times as many (a Chinese word is about 1.6 characters): 8 characters for 5 words, 16 for 10; and one that comes once
is not frequent (in a text of 25 characters any sequence of 5 would be a fifth of it).

How it is fast: no longer sequence is more frequent than the most frequent pair, and a page in which 5 words in a row hardly ever
come twice cannot have longer ones that do. Where these bounds decide, nothing else is counted; where they do not, everything is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import GopherRepetition
from llmfactory.data.clean.repetition_bounds import harmless
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

TOP, DUPLICATE = 2, 5
"""Words in the shortest sequence of the two kinds."""
CHARACTERS = 1.6
"""Of a Chinese word on average."""
PARAGRAPH_END = re.compile("\n{2,}")
Ngram = tuple[str, ...]


class GopherRepetitionRules(Step):
    def __init__(self, spec: GopherRepetition) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        return f"gopher_repetition/1 {self.spec}"

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        top, duplicate = list(enumerate(self.spec.top_ngrams, TOP)), list(enumerate(self.spec.duplicate_ngrams, DUPLICATE))
        dropped = [self._pieces(page) for page in pages]
        left = [page for page, drop in zip(pages, dropped, strict=True) if drop is None]
        sure = iter(harmless(left, top, duplicate))
        return [
            drop or (Kept(page.text) if next(sure) else self._sequences(page)) for page, drop in zip(pages, dropped, strict=True)
        ]

    def apply(self, page: Page) -> Outcome:
        return self._pieces(page) or self._sequences(page)

    def _sequences(self, page: Page) -> Outcome:
        shortest = Sequences.of(page)
        return self._most_frequent(page, shortest) or self._duplicate(page, shortest) or Kept(page.text)

    def _pieces(self, page: Page) -> Drop | None:
        spec, text = self.spec, page.text
        if not text:
            return Drop("empty")
        if "\n" not in text:
            return None
        for name, pieces, most, most_characters in (
            ("paragraphs", _paragraphs(text), spec.duplicate_paragraphs, spec.duplicate_paragraph_characters),
            ("lines", _lines(text), spec.duplicate_lines, spec.duplicate_line_characters),
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

    def _most_frequent(self, page: Page, shortest: Sequences) -> Drop | None:
        words, size, spaces = page.words, len(page.text), 0 if page.unspaced else 1
        least = 2 if page.mostly_unspaced else 1
        for of, n, limit in _lengths(page, TOP, self.spec.top_ngrams):
            if len(words) < n or shortest.most_characters(n) <= limit * size:
                continue
            counts = shortest.counts if n == shortest.n else Counter(ngrams(words, n))
            ngram, count = counts.most_common(1)[0]
            characters = (sum(map(len, ngram)) + (n - 1) * spaces) * count
            if characters / size > limit and count >= least:
                return Drop(f"most frequent {of} words", f"{characters / size:.3f} > {limit:g}: {' '.join(ngram)[:80]!r}")
        return None

    def _duplicate(self, page: Page, shortest: Sequences) -> Drop | None:
        words, size = page.words, len(page.text)
        limits = _lengths(page, DUPLICATE, self.spec.duplicate_ngrams)
        if not limits or not shortest.repeated:
            return None
        length = limits[0][1]
        starts = shortest.starts(words, length)
        counts = Counter([tuple(words[start : start + length]) for start in starts])
        # No fewer characters than in all sequences that stood above already: where they overlap some count several times.
        most = sum([(count - 1) * sum(map(len, ngram)) for ngram, count in counts.items() if count > 1])
        if most <= min(self.spec.duplicate_ngrams) * size:
            return None
        for of, n, limit in limits:
            share = _duplicate_characters(words, n, starts) / size
            if share > limit:
                return Drop(f"duplicate sequences of {of} words", f"{share:.3f} > {limit:g}")
        return None


@dataclass(frozen=True, slots=True)
class Sequences:
    """The shortest sequences of a page that are looked at (pairs of words), all counted, and what they say of longer ones."""

    n: int
    """Words in each."""
    counts: Counter[Ngram]
    repeated: dict[Ngram, int]
    """Those that come more than once."""
    longest: int
    """Characters of the longest word of the page."""
    within: int
    """Characters of the longest word in a repeated one."""
    most: int
    """Characters of the repeated one with the most, all its places together, spaces included."""
    times: int
    """How often the most frequent one comes, if more than once."""

    @classmethod
    def of(cls, page: Page) -> Sequences:
        ((_, n, _),) = _lengths(page, TOP, (0,))
        counts = Counter(ngrams(page.words, n))
        repeated = {ngram: count for ngram, count in counts.items() if count > 1}
        return cls(
            n,
            counts,
            repeated,
            longest=max(map(len, page.words), default=0),
            within=max([len(word) for ngram in repeated for word in ngram], default=0),
            most=max([count * (len("".join(ngram)) + n - 1) for ngram, count in repeated.items()], default=0),
            times=max(repeated.values(), default=0),
        )

    def most_characters(self, n: int) -> int:
        """No fewer than the most frequent sequence of n words has, spaces included: it comes once, or all its parts come twice."""
        return max(n * self.longest + n - 1, self.most + self.times * (n - self.n) * (self.within + 1))

    def starts(self, words: Sequence[str], n: int) -> list[int]:
        """Where sequences of n words begin that may come more than once: all their parts do."""
        flags = bytes(map(self.repeated.__contains__, ngrams(words, self.n)))
        parts = n - self.n + 1
        runs = re.finditer(b"\x01{%d,}" % parts, flags)
        return [start for run in runs for start in range(run.start(), run.end() - parts + 1)]


def _lengths(page: Page, shortest: int, limits: Sequence[float]) -> list[tuple[int, int, float]]:
    """(words of the paper's sequence, words of ours, its limit)."""
    factor = CHARACTERS if page.mostly_unspaced else 1
    return [(n, round(n * factor), limit) for n, limit in enumerate(limits, shortest)]


def _paragraphs(text: str) -> list[str]:
    """Between empty lines."""
    text = text.strip()
    return PARAGRAPH_END.split(text) if "\n\n\n" in text else text.split("\n\n")


def _lines(text: str) -> list[str]:
    """Those with a character, and an empty one where the text begins or ends with a line end."""
    lines = text.split("\n")
    edges = [""] * ((not lines[0]) + (not lines[-1]))
    return [*filter(None, lines), *edges]


def ngrams(words: Sequence[str], n: int) -> zip[Ngram]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _duplicate_characters(words: Sequence[str], n: int, starts: Sequence[int]) -> int:
    """Characters of sequences of n, from these places on, that stood above already; what follows one that did begins behind it."""
    seen: set[Ngram] = set()
    total = end = 0
    last = len(words) - n
    for start in starts:
        if end <= start <= last:
            ngram = tuple(words[start : start + n])
            if ngram in seen:
                total += sum(map(len, ngram))
                end = start + n
            else:
                seen.add(ngram)
    return total
