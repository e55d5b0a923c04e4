from __future__ import annotations

import pytest

from llmfactory.metric.classes import accuracy, f1, macro_f1


def test_by_hand():
    expected, predicted = list("aaabbc"), list("aabbac")
    assert accuracy(predicted, expected) == pytest.approx(4 / 6)
    # a: 2 of 3 said, 2 of 3 there; b: 1 of 2, 1 of 2; c: 1 of 1.
    assert macro_f1(predicted, expected) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_a_class_that_is_never_found_counts_as_nothing():
    assert macro_f1([0, 0], [0, 1]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([0, 2], [0, 1]) == pytest.approx(1 / 3)
    assert f1(0, 0, 0) == 0.0


def test_as_many_predictions_as_references():
    with pytest.raises(ValueError):
        macro_f1([1], [1, 2])
