"""Steps that judge or mend one page by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.data.clean.base_spec import CleanSpec

if TYPE_CHECKING:
    from llmfactory.data.clean.models import Models
    from llmfactory.data.clean.step import Step

STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
"""Rae et al. 2021, table A1."""
CHINESE_STOP_WORDS = list("的是在不了有和一")


class Favor(Enum):
    """Which mistakes an extraction of the main text makes rather."""

    balanced = "balanced"
    precision = "precision"
    """Leave out what may be no main text."""
    recall = "recall"
    """Keep what may be main text."""


@dataclass(kw_only=True, slots=True)
class Html(CleanSpec):
    """Main text of HTML pages, without navigation, by trafilatura (Barbaresi 2021); needs the extra data. A page without any is
    dropped."""

    favor: Favor = Favor.balanced
    """Which mistakes it makes rather."""
    comments: bool = False
    """Keep what readers wrote below the page."""
    tables: bool = True
    """Keep the text of tables."""
    detect: bool = True
    """Leave pages alone whose beginning is no HTML; false: take every page for HTML."""

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.html import HtmlText

        return HtmlText(self)


class Normal(Enum):
    """Normal forms of Unicode."""

    none = "none"
    NFC = "NFC"
    """Accents and their letters in one character."""
    NFKC = "NFKC"
    """Also look-alikes: ligatures, full-width forms, circled digits, superscripts (10² turns into 102)."""


@dataclass(kw_only=True, slots=True)
class Unicode(CleanSpec):
    """Mends characters: text decoded the wrong way (ftfy, Speer 2019), control and invisible characters, line ends."""

    repair: bool = True
    """Mend text that was decoded with another encoding than it was written in (schÃ¶n to schön)."""
    normal: Normal = Normal.NFC
    """Normal form."""
    controls: bool = True
    """Take out control characters and invisible ones: zero-width spaces, soft hyphens, marks that turn the direction of writing by
    force. Those that Persian, Indian languages and emoji need stay. Half a surrogate pair turns into U+FFFD."""
    line_ends: bool = True
    """Write every line end as \\n."""
    half_width: bool = False
    """Write full-width digits and Latin letters (１２ＡＢ) as usual ones; Chinese marks stay."""
    trailing: bool = True
    """Take out white space at the ends of lines."""

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.unicode import UnicodeRepair

        return UnicodeRepair(self)


@dataclass(kw_only=True, slots=True)
class Language(CleanSpec):
    """Keeps pages of some languages, by fastText's classifier of 176 (Joulin et al. 2017); needs the extra data.

    Known by ISO codes: en, zh, de, ... Chinese counts as zh-Hans (simplified) or zh-Hant (traditional) in the report.
    """

    keep: list[str] = field(default_factory=lambda: ["en", "zh"])
    """Languages that go on; zh is both of its scripts, zh-Hans or zh-Hant one. Empty: all, and the step only counts them."""
    min_confidence: float = 0.65
    """Probability of the language below which a page is dropped (FineWeb's is 0.65, Penedo et al. 2024, section 3.3)."""
    sample: int = 2000
    """Characters that are looked at: of a longer page its beginning, middle and end."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "min_confidence")
        yield from at_least(self, 100, "sample")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.language import LanguageChoice

        return LanguageChoice(self)


@dataclass(kw_only=True, slots=True)
class GopherQuality(CleanSpec):
    """Quality rules of MassiveText (Rae et al. 2021, appendix A.1.1, "Quality Filtering")."""

    min_words: int = 50
    """Words at least, those made of marks only aside; a Chinese character is one."""
    max_words: int = 100_000
    """Words at most, likewise."""
    min_mean_length: float = 3.0
    """Characters of a word on average, at least."""
    max_mean_length: float = 10.0
    """Characters of a word on average, at most."""
    max_symbols: float = 0.1
    """Hashes a word at most, and ellipses a word at most."""
    max_bullets: float = 0.9
    """Share of lines that begin with a bullet, at most."""
    max_ellipses: float = 0.3
    """Share of lines that end with an ellipsis, at most."""
    min_alphabetic: float = 0.8
    """Share of words with a letter, at least."""
    min_stop_words: int = 2
    """How many different ones of `stop_words` must stand in a page."""
    stop_words: list[str] = field(default_factory=lambda: [*STOP_WORDS, *CHINESE_STOP_WORDS])
    """Words that every text in a language has: the paper's English ones and Chinese ones."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "min_words")
        yield from at_least(self, 0, "min_mean_length", "min_stop_words", "max_symbols")
        yield from between(self, 0.0, 1.0, "max_bullets", "max_ellipses", "min_alphabetic")
        if self.max_words < self.min_words:
            yield Problem("max_words", self.max_words, f"is below min_words={self.min_words}", f"max_words={self.min_words}")
        if self.max_mean_length < self.min_mean_length:
            repair = f"max_mean_length={self.min_mean_length}"
            yield Problem("max_mean_length", self.max_mean_length, f"is below min_mean_length={self.min_mean_length}", repair)
        if self.min_stop_words > len(set(self.stop_words)):
            reason = f"no page has so many of {len(set(self.stop_words))} stop words"
            yield Problem("min_stop_words", self.min_stop_words, reason, f"min_stop_words={len(set(self.stop_words))}")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.gopher_quality import GopherQualityRules

        return GopherQualityRules(self)


@dataclass(kw_only=True, slots=True)
class GopherRepetition(CleanSpec):
    """Rules against repetition within a page (Rae et al. 2021, appendix A.1.1, table A1)."""

    duplicate_lines: float = 0.3
    """Share of lines that stood above already, at most."""
    duplicate_paragraphs: float = 0.3
    """Share of paragraphs that stood above already, at most."""
    duplicate_line_characters: float = 0.2
    """Share of the characters in such lines, at most."""
    duplicate_paragraph_characters: float = 0.2
    """Share of the characters in such paragraphs, at most."""
    top_ngrams: list[float] = field(default_factory=lambda: [0.20, 0.18, 0.16])
    """Share of the characters in the most frequent sequence of 2, 3, ... words, at most."""
    duplicate_ngrams: list[float] = field(default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10])
    """Share of the characters in sequences of 5, 6, ... words that stood above already, at most."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "duplicate_lines", "duplicate_paragraphs")
        yield from between(self, 0.0, 1.0, "duplicate_line_characters", "duplicate_paragraph_characters")
        for name in ("top_ngrams", "duplicate_ngrams"):
            shares = getattr(self, name)
            if any(not 0.0 <= share <= 1.0 for share in shares):
                repaired = ",".join(str(min(max(share, 0.0), 1.0)) for share in shares)
                yield Problem(name, shares, "shares lie between 0.0 and 1.0", f"{name}=[{repaired}]")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.gopher_repetition import GopherRepetitionRules

        return GopherRepetitionRules(self)


@dataclass(kw_only=True, slots=True)
class C4(CleanSpec):
    """Rules of the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2): lines that are no sentences are taken out, pages
    with too few left or with code or dummy text are dropped."""

    terminal: bool = True
    """Take out lines that do not end with a terminal mark or a quotation mark."""
    min_words: int = 3
    """Take out lines of fewer words; a Chinese character is one."""
    max_word_length: int = 1000
    """Take out lines with a word of more characters."""
    min_sentences: int = 5
    """Sentences that must be left of a page."""
    citations: bool = True
    """Take out marks of citations and edits of Wikipedia ([1], [edit], [citation needed])."""
    boilerplate: bool = True
    """Take out lines that speak of JavaScript, cookies, terms of use or a privacy policy."""
    placeholder: bool = True
    """Drop pages with "lorem ipsum"."""
    curly: bool = True
    """Drop pages with a curly bracket: most are code."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "min_words", "min_sentences")
        yield from at_least(self, 1, "max_word_length")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.c4 import C4Rules

        return C4Rules(self)


@dataclass(kw_only=True, slots=True)
class Fineweb(CleanSpec):
    """FineWeb's own rules (Penedo et al. 2024, section 3.6), against lists, menus and repeated lines."""

    min_terminal: float = 0.12
    """Share of lines that end with a terminal mark, at least."""
    short_line: int = 30
    """Characters up to which a line is short; a Chinese character counts as two."""
    max_short: float = 0.67
    """Share of lines that are short, at most."""
    max_duplicate: float = 0.01
    """Share of the characters in lines that stood above already, at most."""
    max_line_ends: float = 0.3
    """Line ends a word at most; a Chinese character is one."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "min_terminal", "max_short", "max_duplicate")
        yield from at_least(self, 0, "short_line", "max_line_ends")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.fineweb import FinewebRules

        return FinewebRules(self)


LENGTHS = ("characters", "words", "bytes")


@dataclass(kw_only=True, slots=True)
class Length(CleanSpec):
    """Drops pages that are too short or too long."""

    min_characters: int | None = None
    """None: no limit; so for all."""
    max_characters: int | None = None
    """None: no limit."""
    min_words: int | None = 10
    """Words are cut at white space; a Chinese character is one."""
    max_words: int | None = None
    """None: no limit."""
    min_bytes: int | None = None
    """Of UTF-8; None: no limit."""
    max_bytes: int | None = None
    """None: no limit."""

    def problems(self) -> Iterator[Problem]:
        for unit in LENGTHS:
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            yield from at_least(self, 0, f"min_{unit}", f"max_{unit}")
            if low is not None and high is not None and 0 <= high < low:
                yield Problem(f"max_{unit}", high, f"is below min_{unit}={low}", f"max_{unit}={low}")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.length import LengthLimits

        return LengthLimits(self)


@dataclass(kw_only=True, slots=True)
class Code(CleanSpec):
    """Rules for source files: of Codex (Chen et al. 2021), CodeParrot, The Stack (Kocetkov et al. 2022) and StarCoder 2 (Lozhkov et
    al. 2024, section 2.3)."""

    max_line: int | None = 1000
    """Characters of the longest line at most; None: no limit."""
    max_mean_line: float | None = 100.0
    """Characters of a line on average, at most; None: no limit."""
    min_alphanumeric: float = 0.25
    """Share of letters and digits among the characters, at least."""
    min_letters: float = 0.25
    """Share of letters among the characters, at least."""
    max_encoded: float = 0.5
    """Share of the characters in encoded data (base64, lists of hexadecimal bytes, \\u escapes), at most; a run of base64 of more
    than 1024 characters is too much by itself."""
    generated: bool = True
    """Drop files whose first ten lines say that a program wrote them."""
    config: bool = True
    """Drop configuration and test files: those that say so in their first five lines, or speak of config or test too often."""
    data: bool = True
    """Drop files that are data: JSON, XML."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_line", "max_mean_line")
        yield from between(self, 0.0, 1.0, "min_alphanumeric", "min_letters", "max_encoded")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.code import CodeRules

        return CodeRules(self)
