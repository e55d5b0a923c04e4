"""A document on its way through the steps, with what several of them look at, worked out once."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import filterfalse

from llmfactory.data.clean.characters import count_unspaced, has_letter, is_marks, is_unspaced, words_of

SHAPES = bytes(
    ord("a" if chr(code).isalpha() and code < 128 else " " if chr(code).isspace() and code < 128 else ".") for code in range(256)
)
NO_LETTER = re.compile(rb" \.+(?= |\Z)")
"""A word without a letter in a page's shape."""


class Page:
    """A step that changes the text makes a new page of it, so what was worked out here always fits the text."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def with_text(self, text: str) -> Page:
        return self if text == self.text else Page(self.name, text)

    @cached_property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode(errors="surrogatepass"))

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def unspaced(self) -> bool:
        """Whether it has Chinese characters or kana, which are a word each."""
        return is_unspaced(self.text)

    @cached_property
    def words(self) -> list[str]:
        """Cut at white space; a Chinese character or kana is a word of its own, and the marks between them are none."""
        return words_of(self.text) if self.unspaced else self.text.split()

    @cached_property
    def mostly_unspaced(self) -> bool:
        """Whether more than half of the words are such characters: a page in Chinese or Japanese."""
        return self.unspaced and 2 * self.single_words > len(self.words)

    @cached_property
    def single_words(self) -> int:
        """How many words are a Chinese character or kana each."""
        return count_unspaced(self.text)

    @cached_property
    def word_characters(self) -> int:
        """Characters of all words together."""
        return sum(map(len, self.words))

    @cached_property
    def shape(self) -> bytes:
        """The words with a space in front of each, a byte of UTF-8 each: `a` for letters of ASCII, `.` for all else."""
        text = self.text if self.text.isascii() else " ".join(self.words)
        return b" " + text.encode(errors="surrogatepass").translate(SHAPES)

    @cached_property
    def odd_starts(self) -> int:
        """Words that begin with another character than a letter of ASCII: no fewer than those without a letter, and those of marks."""
        return self.shape.count(b" .")

    @cached_property
    def odd_words(self) -> list[str]:
        """Words with a character that is no letter: few."""
        return list(filterfalse(str.isalpha, self.words))

    @cached_property
    def letterless_words(self) -> int:
        """How many words have no letter."""
        if self.text.isascii():
            return len(NO_LETTER.findall(self.shape))
        return sum(not has_letter(word) for word in self.odd_words)

    @cached_property
    def mark_words(self) -> list[str]:
        """Words of marks only."""
        return list(filter(is_marks, self.odd_words))

    @cached_property
    def ellipses(self) -> int:
        return self.text.count("...") + self.text.count("…")
