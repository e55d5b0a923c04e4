"""Penalties for length, beside the equation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.grader.length import LengthGrader
from llmfactory.stage.grader.spec import Length, TargetLength
from llmfactory.stage.grader.target_length import TargetLengthGrader

Said = Callable[..., Answer]


def dapo(tokens: int, most: int, soft: int) -> float:
    """Yu et al. 2025, equation 13."""
    if tokens <= most - soft:
        return 0.0
    if tokens <= most:
        return ((most - soft) - tokens) / soft
    return -1.0


@pytest.mark.parametrize(("most", "soft"), [(100, 20), (100, 100), (7, 1)])
def test_length_is_the_papers(said: Said, most: int, soft: int) -> None:
    answers = [said("x", tokens) for tokens in range(130)]
    expected = [dapo(tokens, most, soft) for tokens in range(130)]
    assert LengthGrader(Length(most=most, soft=soft), 5).grade(answers) == pytest.approx(expected, abs=1e-15)


def test_without_numbers_it_is_about_the_longest_answer(said: Said) -> None:
    answers = [said("x", tokens) for tokens in (80, 90, 100)]
    assert LengthGrader(Length(), 100).grade(answers) == [0.0, -0.5, -1.0]
    with pytest.raises(ConfigError, match="soft"):
        Length(most=10, soft=11)


def test_target_length(said: Said) -> None:
    grader = TargetLengthGrader(TargetLength(target=10))
    assert grader.grade([said("x", tokens) for tokens in (10, 5, 15, 0, 50)]) == [0.0, -0.5, -0.5, -1.0, -1.0]
    with pytest.raises(ConfigError, match="target"):
        TargetLength(target=0)
