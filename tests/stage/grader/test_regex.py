from __future__ import annotations

from collections.abc import Callable

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.grader.regex import RegexGrader
from llmfactory.stage.grader.spec import Regex

Said = Callable[..., Answer]


def test_it_is_found_anywhere(said: Said) -> None:
    grader = RegexGrader(Regex(pattern=r"\bno\b"))
    assert grader.grade([said("no"), said("oh\nno!"), said("nothing"), said("")]) == [1.0, 1.0, 0.0, 0.0]


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        Regex(pattern="(")
