"""What is due of each source: against a reference that draws one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.data.mix.course import RAMP, Course, pieces

INF = float("inf")


def reference(steps: list[tuple[float, list[float]]], most: list[float], samples: int) -> np.ndarray:
    """W(n) for n = 0, ..., samples by adding shares up, a ten-thousandth of a sample at a time where a source runs out."""
    done, found = np.zeros(len(most)), [np.zeros(len(most))]
    for n in range(samples):
        weights = np.array([one for start, one in steps if start <= n][-1])
        left = 1.0
        while left > 1e-9:
            share = np.where(done < np.array(most) - 1e-9, weights, 0.0)
            if not share.any():
                share = (done < np.array(most) - 1e-9).astype(float)
            if not share.any():
                break
            share = share / share.sum()
            part = min([left, *((m - d) / s for m, d, s in zip(most, done, share, strict=True) if s)])
            done, left = done + share * part, left - part
        found.append(done.copy())
    return np.array(found)


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([(0, [1, 1])], [INF, INF]),
        ([(0, [5, 3, 2])], [INF, 40, INF]),
        ([(0, [5, 3, 2])], [30, 40, INF]),
        ([(0, [5, 3, 2])], [30, 40, 17]),
        ([(0, [1, 0, 3]), (50, [0, 1, 0]), (120, [2, 2, 1])], [INF, 33, 90]),
        ([(0, [1, 0]), (50, [1, 1])], [20, 100]),
        ([(0, [1e-4, 1])], [INF, INF]),
    ],
)
def test_it_follows_the_weights_and_leaves_out_what_is_used_up(steps: list[tuple[float, list[float]]], most: list[float]) -> None:
    course = Course([(float(start), np.array(weights, float)) for start, weights in steps], np.array(most))
    numbers = np.arange(201)
    expected = reference(steps, most, 200)
    found = course.due(numbers)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6
    assert (np.diff(found, axis=0) >= 0).all()
    assert (found <= np.array(most)).all()
    assert course.end == (sum(most) if all(np.isfinite(most)) else INF)
    assert course.due(np.array([10**6]))[0].sum() == pytest.approx(min(10**6, sum(most)), abs=len(most) / 2)


def test_shares_do_not_hang_on_the_last_bit() -> None:
    """A power may differ in its last bit between machines."""
    weights = np.array([0.3, 0.7, 1e-6])
    courses = [Course([(0.0, one)], np.full(3, INF)) for one in (weights, np.nextafter(weights, 1))]
    assert courses[0].share_KS.tolist() == courses[1].share_KS.tolist()
    assert courses[0].share_KS.sum() == 1


def test_far_away_is_exact() -> None:
    course = Course([(0.0, np.array([3.0, 2.0]))], np.full(2, INF))
    assert course.due(np.array([10**9, 10**12])).tolist() == [[6 * 10**8, 4 * 10**8], [6 * 10**11, 4 * 10**11]]


def test_weights_of_tokens_become_weights_of_rows() -> None:
    found = pieces([(0.0, {"a": 1.0, "b": 3.0})], ["a", "b"], {"a": 100.0, "b": 50.0}, 1000)
    assert len(found) == 1
    assert found[0][1].tolist() == pytest.approx([1 / 7, 6 / 7])


def test_linear_changes_and_jumps() -> None:
    even = {"a": 1.0, "b": 1.0}
    line = pieces([(0.0, {"a": 1.0, "b": 0.0}), (0.5, even), (0.5, {"a": 0.0, "b": 9.0})], ["a", "b"], even, 10_000)
    assert len(line) == RAMP + 3
    course = Course(line, np.full(2, INF))
    n = np.array([1000, 5000, 7000])
    exact = n - np.minimum(n, 5000) ** 2 / 20_000  # of a: the integral of 1 - n / 10000, up to the jump
    exact[2] = exact[1]
    assert np.abs(course.due(n)[:, 0] - exact).max() <= 1
    assert course.due(n).sum(1).tolist() == n.tolist()
