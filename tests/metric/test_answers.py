from __future__ import annotations

import pytest

from llmfactory.metric.answers import exact_match, normalize, overlap_f1


def test_what_is_compared():
    assert normalize("The  quick, brown FOX's an a theme") == "quick brown foxs theme"


def test_the_nearest_right_answer_counts():
    assert exact_match("the Eiffel tower.", ["Paris", "Eiffel Tower"]) == 1.0
    assert exact_match("Eiffel", ["Eiffel Tower"]) == 0.0
    assert overlap_f1("big Eiffel tower", ["Paris", "Eiffel Tower"]) == pytest.approx(2 * 2 / 5)
    assert overlap_f1("tower tower", ["tower"]) == pytest.approx(2 / 3)
    assert overlap_f1("London", ["Paris"]) == 0.0


def test_a_question_without_an_answer():
    assert exact_match("", []) == overlap_f1("", []) == 1.0
    assert exact_match("Paris", []) == overlap_f1("Paris", []) == 0.0
    assert overlap_f1("", ["Paris"]) == 0.0
