"""Answers as graders see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.stage.grader.grader import Answer


@pytest.fixture
def said() -> Callable[..., Answer]:
    """An answer with a text, of so many tokens; the rest is the prompt's record."""

    def make(text: str, tokens: int = 1, prompt: str = "What?", **record: Any) -> Answer:
        return Answer([1, 2], prompt, list(range(tokens)), text, True, record)

    return make
