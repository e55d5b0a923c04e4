"""Pages with words of a list (Raffel et al. 2020, section 2.2).

Chinese words and those with kana are looked for inside of text; all others as whole words, between characters that are no letters.
A word that has a Chinese neighbour is whole, too: 我ok吧 has the word ok.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.clean.characters import UNSPACED, is_unspaced
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import BadWords
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

WORD = re.compile(rf"[^\W{UNSPACED}]+")
MOST = 3
"""How many kinds of words are shown."""


class BadWordList(Step):
    def __init__(self, spec: BadWords) -> None:
        self.spec = spec
        words = read(Path(spec.file))
        self.inside = [word for word in words if is_unspaced(word)]
        self.whole = frozenset(word for word in words if WORD.fullmatch(word))
        self.phrases = {
            word: re.compile(rf"(?<![^\W{UNSPACED}]){re.escape(word)}(?![^\W{UNSPACED}])")
            for word in words
            if word not in self.whole and not is_unspaced(word)
        }
        self.hash = sha256("\n".join(words).encode()).hexdigest()

    def fingerprint(self) -> str:
        return f"bad_words/1 {self.hash} {self.spec.max_matches} {self.spec.max_share}"

    def apply(self, page: Page) -> Outcome:
        found = self._matches(page)
        count = found.total()
        if self.spec.max_share is not None:
            share = count / max(1, len(page.words))
            too_many, figure = share > self.spec.max_share, f"{share:.4f} of the words > {self.spec.max_share:g}"
        else:
            too_many, figure = count > self.spec.max_matches, f"{count} > {self.spec.max_matches}"
        if not too_many:
            return Kept(page.text)
        shown = ", ".join(
            f"{word} ({times})" for word, times in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST]
        )
        return Drop("words of the list", f"{figure}: {shown}")

    def _matches(self, page: Page) -> Counter[str]:
        text = page.text.lower()
        found = Counter(filter(self.whole.__contains__, WORD.findall(text))) if self.whole else Counter()
        if page.unspaced:
            found.update({word: times for word in self.inside if (times := text.count(word))})
        for phrase, pattern in self.phrases.items():
            if phrase in text and (times := len(pattern.findall(text))):
                found[phrase] += times
        return found


def read(path: Path) -> list[str]:
    """Words of a list in lower case, sorted, each once. Raises UserError where there is no list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: the list of words cannot be read: {error.strerror}. Name one: data.clean.bad_words.file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the list of words is not UTF-8 (byte {error.start}). Write it so, one word a line") from error
    words = sorted({" ".join(line.partition("#")[0].lower().split()) for line in lines} - {""})
    if not words:
        raise UserError(f"{path}: the list of words is empty. Write one word or phrase a line")
    return words
