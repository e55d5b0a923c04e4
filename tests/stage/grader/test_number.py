from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from llmfactory.stage.grader.grader import Answer, NoGrade, graded
from llmfactory.stage.grader.number import NumberGrader, last_number
from llmfactory.stage.grader.spec import Number
from llmfactory.stage.grader.text_spec import Take

Said = Callable[..., Answer]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("She has 16 - 3 - 4 = 9 eggs, so $9 * 2 = $18.", 18),
        ("1,234.5", Fraction(2469, 2)),
        ("12,345,678 people", 12345678),
        ("1,23", 23),
        (r"$1{,}234$", 1234),
        ("a 3/4.", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r" -\dfrac{1}{2}", Fraction(-1, 2)),
        ("-5", -5),
        ("\u22123", -3),
        ("x-5", 5),
        ("3 - 5", 5),
        ("-$3", -3),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("5.", 5),
        ("2e3", 2000),
        ("10/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number


def test_the_number_is_the_right_one(said: Said) -> None:
    grader = NumberGrader(Number())
    texts = ["so 18", "18.0", "36/2", "19", "no idea", "18 and then 5"]
    assert grader.grade([said(text, answer="18") for text in texts]) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert NumberGrader(Number(field="answers")).grade([said("2", answers=["1", 2])]) == [1.0]


def test_how_far_off_it_may_be(said: Said) -> None:
    answers = [said(text, answer="1000") for text in ("1009", "1011")]
    assert NumberGrader(Number(tolerance=0.01)).grade(answers) == [1.0, 0.0]
    assert NumberGrader(Number(tolerance=0.0)).grade([said("0.30000001", answer="0.3")]) == [0.0]
    assert NumberGrader(Number()).grade([said("0.30000001", answer="0.3")]) == [1.0]


def test_where_it_stands(said: Said) -> None:
    spec = Number(take=Take.marker, mark="####")
    assert NumberGrader(spec).grade([said("#### $18\nor 19", answer="18"), said("18", answer="18")]) == [1.0, 0.0]


def test_a_record_without_a_number_gives_no_grade(said: Said) -> None:
    assert graded(NumberGrader(Number()), [said("18", answer="eighteen")], 1.0) == [NoGrade("raised ValueError")]


def test_the_largest_numbers_take_no_time(said: Said) -> None:
    assert NumberGrader(Number()).grade([said("9" * 4000, answer="1e999"), said("1e9999999", answer="1")]) == [0.0, 0.0]
