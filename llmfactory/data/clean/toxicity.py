"""Toxic words of lists of your own: how much of a page they are, and what is done about them.

One that begins or ends with a letter of an alphabet or a digit must stand there by itself: `ass` is not in `class`. Chinese words and
kana stand anywhere. Of words over each other the longest of the first counts.

Words of letters alone are looked up as they come; all others are looked for together (Aho and Corasick 1975). Neither takes longer
the more there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.data.clean.characters import UNSPACED, is_unspaced, words_of
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Against, Measure, Toxicity
from llmfactory.data.clean.spans import Span, disjoint, lowered
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

VERSION = 1
WORD = re.compile(rf"[^\W{UNSPACED}]+")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters, which no program but Python takes for a text."""
REASON = "toxic words"
LEET = str.maketrans("013457@$!|", "oleastasil")
"""How letters are spelled to get through."""
SHOWN = 3


class ToxicWords(Step):
    def __init__(self, spec: Toxicity) -> None:
        self.spec = spec
        self.weights: dict[str, float] = {}
        for name in spec.files:
            self.weights |= {self._normal(word): weight for word, weight in read(Path(name)).items()}
        self.whole = frozenset(filter(WORD.fullmatch, self.weights))
        self.automaton  # noqa: B018  # what is missing is told at once

    def fingerprint(self) -> str:
        spec, words = self.spec, sha256(repr(sorted(self.weights.items())).encode()).hexdigest()
        return f"toxicity {VERSION} {words} {spec.measure.name} {spec.threshold} {spec.action.name} {spec.leetspeak}"

    @cached_property
    def automaton(self) -> Any:
        try:
            import ahocorasick_rs
        except ImportError as error:
            raise MissingExtra("ahocorasick_rs", "data", "data.clean.toxicity") from error
        return ahocorasick_rs.AhoCorasick(sorted(self.weights.keys() - self.whole))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "automaton"}

    def _normal(self, text: str) -> str:
        text = lowered(text)
        return text.translate(LEET) if self.spec.leetspeak else text

    def apply(self, page: Page) -> Outcome:
        text = self._normal(page.text)
        found = self._places(text)
        if not found:
            return Kept(page.text)
        if self.spec.action is Against.line:
            return self._without_lines(page, text, found)
        figure = self._figure(text, found, page.words if self.spec.measure is Measure.share else ())
        if figure < self.spec.threshold:
            return Kept(page.text)
        if self.spec.action is Against.mask:
            return Kept(_masked(page.text, found), {"masked word": len(found)})
        return Drop(REASON, f"{self.spec.measure.name} {figure:.4g}: {self._shown(text, found)}")

    def _places(self, text: str) -> list[Span]:
        found: list[Span] = []
        if not self.whole.isdisjoint(WORD.findall(text)):
            found += [match.span() for match in WORD.finditer(text) if match[0] in self.whole]
        if len(self.whole) < len(self.weights):
            matches = self.automaton.find_matches_as_indexes(SURROGATE.sub("?", text), overlapping=True)
            found += [(start, end) for _, start, end in matches if _stands_alone(text, start, end)]
        return disjoint(found)

    def _figure(self, text: str, found: Sequence[Span], words: Sequence[str]) -> float:
        if self.spec.measure is Measure.count:
            return math.fsum(self.weights[text[start:end]] for start, end in found)
        weighted = (self.weights[text[start:end]] * len(words_of(text[start:end])) for start, end in found)
        return math.fsum(weighted) / max(1, len(words))

    def _without_lines(self, page: Page, text: str, found: Sequence[Span]) -> Outcome:
        """Each line is measured by itself."""
        kept, gone, start, place = [], 0, 0, 0
        for line in page.text.splitlines(keepends=True):
            end, first = start + len(line), place
            while place < len(found) and found[place][0] < end:
                place += 1
            here = found[first:place]
            if here and self._figure(text, here, words_of(line)) >= self.spec.threshold:
                gone += 1
            else:
                kept.append(line)
            start = end
        if not gone:
            return Kept(page.text)
        left = "".join(kept)
        return Kept(left, {"toxic line": gone}) if left.strip() else Drop(REASON, f"in every line: {self._shown(text, found)}")

    def _shown(self, text: str, found: Sequence[Span]) -> str:
        words = list(dict.fromkeys(text[start:end] for start, end in found))
        return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


def _masked(text: str, found: Sequence[Span]) -> str:
    pieces, done = [], 0
    for start, end in found:
        pieces += [text[done:start], "*" * (end - start)]
        done = end
    return "".join([*pieces, text[done:]])


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, behind = start and _spaced(text[start - 1]), end < len(text) and _spaced(text[end])
    return not (before and _spaced(text[start])) and not (behind and _spaced(text[end - 1]))


def _spaced(character: str) -> bool:
    """Whether it is of a word that is written with spaces around it."""
    return (character.isalnum() or character == "_") and (character.isascii() or not is_unspaced(character))


def read(path: Path) -> dict[str, float]:
    """Weights of the words of a list. Raises UserError: no list, or a line that is none of one."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: the list of words cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the list of words is not UTF-8 (byte {error.start}). Write it so, one word a line") from error
    found: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        word, _, weight = line.partition("#")[0].strip().partition("\t")
        word = " ".join(word.split())
        if word:
            found[word] = _weight(weight.strip(), f"{path}, line {number}")
    if not found:
        raise UserError(f"{path}: the list of words is empty. Write one word or phrase a line")
    return found


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text) if text else 1.0
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise UserError(f"{where}: the weight {text!r} is no positive number. Write word, tab, number, or the word alone")
    return weight
