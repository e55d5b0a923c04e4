"""Limits of each kind, and that a limit itself is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import Length
from llmfactory.data.clean.step import Drop, Kept, Outcome

NO_WORDS: dict[str, Any] = {"min_words": None}


def outcome(text: str, **options: Any) -> Outcome:
    return Length(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def reason(text: str, **options: Any) -> str | None:
    found = outcome(text, **options)
    return found.reason if isinstance(found, Drop) else None


def test_min_characters_and_max_characters() -> None:
    assert reason("é你a", min_characters=3, max_characters=3, **NO_WORDS) is None
    assert reason("é你", min_characters=3, **NO_WORDS) == "too few characters"
    assert reason("é你ab", max_characters=3, **NO_WORDS) == "too many characters"


def test_min_bytes_and_max_bytes() -> None:
    assert reason("é你a", min_bytes=6, max_bytes=6, **NO_WORDS) is None
    assert reason("é你", min_bytes=6, **NO_WORDS) == "too few bytes"
    assert reason("é你ab", max_bytes=6, **NO_WORDS) == "too many bytes"


def test_min_words_and_max_words() -> None:
    assert reason("one 两个 three", min_words=4, max_words=4) is None
    assert outcome("one two", min_words=3) == Drop("too few words", "2 < 3")
    assert outcome("一二三四", max_words=3, min_words=None) == Drop("too many words", "4 > 3")
    assert reason("one two") == "too few words"


def test_a_page_that_stays_is_the_same() -> None:
    assert outcome(" a  b ", min_words=2) == Kept(" a  b ")


def test_limits_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="max_bytes=9"):
        Length(min_bytes=9, max_bytes=8)
    with pytest.raises(ConfigError, match="at least 0"):
        Length(min_words=-1)
