"""Estimates from n tries, beside every choice of k of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from llmfactory.metric.best_of import best_of, ladder, pass_at


@pytest.mark.parametrize("rewards", [[0.0], [3.0, -1.0, 2.5, 2.5, 0.0], [1.0] * 4, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]])
def test_the_best_of_k_over_all_choices(rewards: list[float]) -> None:
    for k in range(1, len(rewards) + 1):
        assert best_of(rewards, k) == pytest.approx(np.mean([max(some) for some in combinations(rewards, k)]))


@pytest.mark.parametrize(("tries", "right"), [(1, 0), (1, 1), (6, 0), (6, 2), (6, 6)])
def test_pass_at_k_over_all_choices(tries: int, right: int) -> None:
    marks = [number < right for number in range(tries)]
    for k in range(1, tries + 1):
        assert pass_at(tries, right, k) == pytest.approx(np.mean([any(some) for some in combinations(marks, k)]))


def test_pass_at_k_is_the_papers_code() -> None:
    """Chen et al. 2021, figure 3: 1 - prod(1 - k / arange(n - c + 1, n + 1))."""
    assert pass_at(200, 13, 10) == pytest.approx(1 - np.prod(1 - 10 / np.arange(200 - 13 + 1, 200 + 1)))


def test_which_k_are_shown() -> None:
    assert [ladder(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
