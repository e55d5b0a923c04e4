"""Decisions are those of the rules, written down plainly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.characters import TERMINAL
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Fineweb
from llmfactory.data.clean.step import Drop, Kept, Outcome

OFF: dict[str, Any] = {"min_terminal": 0.0, "max_short": 1.0, "max_duplicate": 1.0, "max_line_ends": 100.0}


def outcome(text: str, **options: Any) -> Outcome:
    return Fineweb(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def reason(text: str, **options: Any) -> str | None:
    found = outcome(text, **{**OFF, **options})
    return found.reason if isinstance(found, Drop) else None


def plain(text: str, spec: Fineweb) -> str | None:
    """Penedo et al. 2024, section 3.6, for text without Chinese characters."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(any(line.endswith(mark) for mark in TERMINAL) for line in lines) / len(lines) < spec.min_terminal:
        return "lines without a terminal mark"
    if sum(len(line) <= spec.short_line for line in lines) / len(lines) > spec.max_short:
        return "short lines"
    again = [line for i, line in enumerate(lines) if line in lines[:i]]
    if sum(map(len, again)) / len(text.replace("\n", "")) > spec.max_duplicate:
        return "characters of duplicate lines"
    if text.count("\n") / len(text.split()) > spec.max_line_ends:
        return "list"
    return None


def test_equals_the_rules(prose: Callable[..., str]) -> None:
    numbers, seen = random.Random(0), set()
    for _ in range(2000):
        text = prose(numbers)
        spec = Fineweb(
            min_terminal=numbers.choice([0.0, 0.12, 0.5]),
            short_line=numbers.choice([3, 30, 60]),
            max_short=numbers.choice([0.5, 0.67, 1.0]),
            max_duplicate=numbers.choice([0.01, 0.2, 1.0]),
            max_line_ends=numbers.choice([0.1, 0.3, 9.0]),
        )
        found = spec.build(None).apply(Page("a", text))  # type: ignore[arg-type]
        assert (found.reason if isinstance(found, Drop) else None) == plain(text, spec), text
        assert isinstance(found, Drop) or found == Kept(text)
        seen.add(plain(text, spec))
    assert len(seen) == 6, "every rule decides sometimes"


def test_the_released_numbers() -> None:
    spec = Fineweb()
    assert (spec.min_terminal, spec.short_line, spec.max_short, spec.max_duplicate, spec.max_line_ends) == (
        0.12,
        30,
        0.67,
        0.01,
        0.3,
    )


def test_min_terminal() -> None:
    text = 'one\ntwo.\nthree"\nfour:'
    assert (reason(text, min_terminal=0.25), reason(text, min_terminal=0.26)) == (None, "lines without a terminal mark")


def test_short_line_and_max_short() -> None:
    text = "12345\n123456\n1234567\n12345678"
    assert (reason(text, short_line=6, max_short=0.5), reason(text, short_line=7, max_short=0.5)) == (None, "short lines")
    assert reason(text, short_line=6, max_short=0.49) == "short lines"


def test_max_duplicate() -> None:
    text = "abc\n\nde\nabc\nfg"
    assert reason(text, max_duplicate=0.3) is None
    assert outcome(text, **{**OFF, "max_duplicate": 0.29}) == Drop("characters of duplicate lines", "0.300 > 0.29")


def test_max_line_ends() -> None:
    text = "a b\nc d\ne f"
    assert reason(text, max_line_ends=0.34) is None
    assert outcome(text, **{**OFF, "max_line_ends": 0.33}) == Drop("list", "0.333 line ends a word > 0.33")


def test_chinese() -> None:
    prose = "我们今天在学校里看了一本很有意思的书，他说：“真的很好看。”\n大家都觉得这个故事写得不错，都想再看一次吗？"
    assert outcome(prose) == Kept(prose)
    assert reason("十五个字是三十个字符宽的一行呀\n" * 3, max_short=0.9) == "short lines"
    assert reason("十六个字是三十个字符宽的一行呀了\n" * 3, max_short=0.9) is None
    assert reason("首页\n新闻\n体育", min_terminal=0.12) == "lines without a terminal mark"
    assert outcome("，。\n" * 3, **{**OFF, "max_line_ends": 0.9}) == Drop("list", "1.000 line ends a word > 0.9")


def test_options_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match=r"max_short=1\.0"):
        Fineweb(max_short=2)
