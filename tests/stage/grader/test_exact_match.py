from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.extraction import extract
from llmfactory.stage.grader.grader import Answer, NoGrade, graded
from llmfactory.stage.grader.spec import ExactMatch
from llmfactory.stage.grader.text_spec import Take

Said = Callable[..., Answer]


@pytest.mark.parametrize(
    ("text", "options", "grade"),
    [
        ("Paris", {}, 1.0),
        ("  Paris \n", {}, 1.0),
        ("paris", {}, 0.0),
        ("paris", {"ignore_case": True}, 1.0),
        ("Paris!", {}, 0.0),
        ("Paris!", {"ignore_punctuation": True}, 1.0),
        ("the Paris", {"ignore_articles": True}, 1.0),
        ("the Paris", {}, 0.0),
        ("", {}, 0.0),
        ("I think so.\n#### Paris", {"take": Take.marker, "mark": "####"}, 1.0),
        ("Paris", {"take": Take.marker, "mark": "####"}, 0.0),
        ("It is: Paris; or not", {"take": Take.pattern, "mark": "is: (\\w+)"}, 1.0),
        ("I say\nParis\n\n", {"take": Take.last_line}, 1.0),
        (r"so \boxed{Rome} no \boxed{Paris}", {"take": Take.boxed}, 1.0),
    ],
)
def test_what_is_the_same(said: Said, text: str, options: dict[str, Any], grade: float) -> None:
    assert ExactMatchGrader(ExactMatch(**options)).grade([said(text, answer="Paris")]) == [grade]


def test_one_of_several_right_answers_and_another_field(said: Said) -> None:
    grader = ExactMatchGrader(ExactMatch(field="answers"))
    assert grader.grade([said("b", answers=["a", "b"]), said("c", answers=["a", "b"]), said("7", answers=7)]) == [1.0, 0.0, 1.0]
    assert graded(grader, [said("b", answer="b")], 1.0) == [NoGrade("raised KeyError")]
    assert ExactMatch(field="answers").needs() == ("answers",)


@pytest.mark.parametrize(
    ("take", "mark", "text", "found"),
    [
        (Take.whole, None, " x ", " x "),
        (Take.last_line, None, "a\nb\n  \n", "b"),
        (Take.last_line, None, " \n", None),
        (Take.marker, "####", "1 #### 2\n#### 3\nbecause", "3"),
        (Take.boxed, None, r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (Take.boxed, None, r"\fbox{a} \boxed{b", "a"),
        (Take.boxed, None, "b", None),
        (Take.pattern, r"\d+", "1 22 333", "333"),
        (Take.pattern, r"x(\d)", "x1 x2", "2"),
        (Take.pattern, r"y", "x", None),
    ],
)
def test_the_part_that_is_compared(take: Take, mark: str | None, text: str, found: str | None) -> None:
    assert extract(text, take, mark) == found


@pytest.mark.parametrize(
    "options", [{"take": Take.marker}, {"take": Take.pattern, "mark": "("}, {"mark": "####"}, {"take": Take.boxed, "mark": "x"}]
)
def test_a_mark_belongs_to_what_looks_for_it(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mark"):
        ExactMatch(**options)
