from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.stage.grader.format import FormatGrader
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.grader.spec import Format

Said = Callable[..., Answer]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("<think>a\nb</think>\n<answer>c</answer>", 1.0),
        ("  <think></think><answer></answer>\n", 1.0),
        ("<think>a</think> well <answer>c</answer>", 0.0),
        ("<answer>c</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>c</answer> more", 0.0),
        ("<think>a<think>b</think></think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>c</answer><answer>d</answer>", 0.0),
        ("<think>a</think><answer>c", 0.0),
        ("", 0.0),
    ],
)
def test_tags_each_once_and_in_order(said: Said, text: str, grade: float) -> None:
    assert FormatGrader(Format()).grade([said(text)]) == [grade]


def test_a_pattern_fits_all_of_the_answer(said: Said) -> None:
    grader = FormatGrader(Format(tags=[], pattern="yes|no.*"))
    assert grader.grade([said(" yes\n"), said("yes!"), said("no\nway"), said("oh no")]) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("options", [{"pattern": "x"}, {"tags": []}, {"tags": ["a", "a"]}, {"tags": [], "pattern": "["}])
def test_the_form_is_said_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Format(**options)
