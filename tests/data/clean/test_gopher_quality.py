"""Decisions are those of the rules as the paper states them, written down plainly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.characters import MARKS
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import CHINESE_STOP_WORDS, STOP_WORDS, GopherQuality
from llmfactory.data.clean.step import Drop, Kept, Outcome

SENTENCE = "the cat and the dog have to be with us in the big house. "


def outcome(text: str, **options: Any) -> Outcome:
    return GopherQuality(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def reason(text: str, **options: Any) -> str | None:
    found = outcome(text, **options)
    return found.reason if isinstance(found, Drop) else None


def plain(text: str, spec: GopherQuality) -> str | None:
    """Rae et al. 2021, appendix A.1.1, rule by rule, for text without Chinese characters."""
    words, lines = text.split(), text.splitlines()
    real = [word for word in words if not all(character in MARKS for character in word)]
    if len(real) < spec.min_words:
        return "too few words"
    if len(real) > spec.max_words:
        return "too many words"
    mean = sum(len(word) for word in real) / len(real)
    if mean < spec.min_mean_length:
        return "short words"
    if mean > spec.max_mean_length:
        return "long words"
    if text.count("#") / len(words) > spec.max_symbols:
        return "hashes"
    if (text.count("...") + text.count("…")) / len(words) > spec.max_symbols:
        return "ellipses"
    if sum(line.lstrip()[:1] in ("•", "-") and line.strip() != "" for line in lines) / len(lines) > spec.max_bullets:
        return "lines with bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > spec.max_ellipses:
        return "lines that end with an ellipsis"
    if sum(any(character.isalpha() for character in word) for word in words) / len(words) < spec.min_alphabetic:
        return "words without a letter"
    if sum(word in words for word in set(spec.stop_words)) < spec.min_stop_words:
        return "stop words"
    return None


def test_equals_the_rules(prose: Callable[..., str]) -> None:
    numbers, seen = random.Random(0), set()
    for _ in range(3000):
        text = prose(numbers)
        spec = GopherQuality(
            min_words=numbers.choice([1, 5, 50]),
            max_words=numbers.choice([60, 100_000]),
            min_mean_length=numbers.choice([0.0, 3.0, 4.0]),
            max_mean_length=numbers.choice([4.5, 10.0]),
            max_symbols=numbers.choice([0.01, 0.1, 1.0]),
            max_bullets=numbers.choice([0.1, 0.9]),
            max_ellipses=numbers.choice([0.05, 0.3]),
            min_alphabetic=numbers.choice([0.0, 0.6, 0.8, 0.95]),
            min_stop_words=numbers.choice([0, 2, 5]),
        )
        found = spec.build(None).apply(Page("a", text))  # type: ignore[arg-type]
        assert (found.reason if isinstance(found, Drop) else None) == plain(text, spec), text
        assert isinstance(found, Drop) or found == Kept(text)
        seen.add(plain(text, spec))
    assert len(seen) == 11, "every rule decides sometimes"


def test_the_paper_s_numbers() -> None:
    spec = GopherQuality()
    assert (spec.min_words, spec.max_words, spec.min_mean_length, spec.max_mean_length) == (50, 100_000, 3, 10)
    assert (spec.max_symbols, spec.max_bullets, spec.max_ellipses, spec.min_alphabetic) == (0.1, 0.9, 0.3, 0.8)
    assert (spec.min_stop_words, spec.stop_words) == (
        2,
        ["the", "be", "to", "of", "and", "that", "have", "with", *CHINESE_STOP_WORDS],
    )


def test_min_words_and_max_words_are_allowed_themselves() -> None:
    text = SENTENCE * 4 + "- ... --"
    assert (reason(text, min_words=56, max_words=56), reason(text, min_words=57)) == (None, "too few words")
    assert outcome(text, max_words=55) == Drop("too many words", "56 > 55")


def test_min_mean_length_and_max_mean_length_are_allowed_themselves() -> None:
    text = "abcd the to " * 20  # 9 characters in 3 words
    assert (reason(text, min_mean_length=3, max_mean_length=3), reason(text, min_mean_length=3.01)) == (None, "short words")
    assert outcome(text, min_mean_length=1, max_mean_length=2.9) == Drop("long words", "3.00 characters on average > 2.9")


def test_max_symbols() -> None:
    end = "in it."
    hashes, ellipses = SENTENCE * 9 + "#big " * 14 + end, SENTENCE * 9 + "well... " * 14 + end
    assert (reason(hashes, max_symbols=0.1), reason(ellipses, max_symbols=0.1)) == (None, None)  # 14 in 142 words
    assert (reason(hashes, max_symbols=0.09), reason(ellipses, max_symbols=0.09)) == ("hashes", "ellipses")
    assert reason(ellipses.replace("...", "…"), max_symbols=0.09) == "ellipses"


def test_max_bullets() -> None:
    lines = [f"{mark}{SENTENCE}" for mark in ("- ", "  • ", "-", "")]
    assert reason("\n".join(lines), max_bullets=0.75) is None
    assert reason("\n".join(lines), max_bullets=0.74) == "lines with bullets"


def test_max_ellipses() -> None:
    lines = [SENTENCE + end for end in ("on... ", "on…", "on.", "on.")]
    assert reason("\n".join(lines), max_ellipses=0.5) is None
    assert reason("\n".join(lines), max_ellipses=0.49) == "lines that end with an ellipsis"


def test_min_alphabetic() -> None:
    text = SENTENCE * 4 + "12 34 -- 56 78 90 ²² 12 ... 34 (5) 6, 7; 8"  # 56 words with a letter, 14 without
    assert reason(text, min_alphabetic=0.8, min_mean_length=2) is None
    assert reason(text, min_alphabetic=0.81, min_mean_length=2) == "words without a letter"


def test_min_stop_words_and_stop_words() -> None:
    text = "cats and dogs chase other cats around big houses " * 10
    assert outcome(text) == Drop("stop words", "1 < 2")
    assert (reason(text, min_stop_words=1), reason(text, stop_words=["and", "big"])) == (None, None)
    assert reason(text * 3 + "with") is None, "wherever they stand"


CHINESE = "我们今天在学校里看了一本很有意思的书，书里说的是一个老人和他的猫的故事。大家都觉得这个故事不错，想再看一次。"


def test_chinese_prose_is_kept() -> None:
    assert outcome(CHINESE) == Kept(CHINESE)
    assert outcome(CHINESE * 20 + " See https://example.org/a/very/long/address/indeed/that/goes/on") == Kept(
        CHINESE * 20 + " See https://example.org/a/very/long/address/indeed/that/goes/on"
    ), "the length of few foreign words says nothing"


def test_rules_for_chinese() -> None:
    assert reason(CHINESE[:40]) == "too few words"
    assert reason("春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" * 3, stop_words=STOP_WORDS) == "stop words"
    assert reason("……".join(CHINESE)) == "ellipses"
    assert reason("\n".join(f"• {CHINESE}" for _ in range(4))) == "lines with bullets"
    assert reason(CHINESE + " 12" * 30) == "words without a letter"
    english = "internationalization considerations notwithstanding " * 30
    assert reason(english + "的") == "long words", "one Chinese character makes no Chinese page"


def test_options_that_contradict_each_other() -> None:
    for options, repair in (
        ({"max_words": 10}, "max_words=50"),
        ({"max_mean_length": 2.0}, "max_mean_length=3.0"),
        ({"stop_words": ["a"]}, "min_stop_words=1"),
        ({"min_words": 0}, "min_words=1"),
        ({"max_bullets": 1.5}, "max_bullets=1.0"),
    ):
        with pytest.raises(ConfigError, match=repair):
            GopherQuality(**options)  # type: ignore[arg-type]
