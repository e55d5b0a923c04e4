"""The order of a mixture: exact shares, any sample at once, sources that do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.mix.course import Course
from llmfactory.data.mix.mix_order import BLOCK, STRATUM, MixOrder
from llmfactory.data.order import Order, seed_of

SIZES = {"web": 1000, "code": 300, "books": 7}
WEIGHTS = {"web": 5.0, "code": 3.0, "books": 0.01}


def make(weights: dict[str, float], seed: int = 0, epochs: float = np.inf) -> MixOrder:
    sizes = [SIZES[name] for name in weights]
    course = Course([(0.0, np.array(list(weights.values())))], np.floor(epochs * np.array(sizes, float)))
    orders = [Order(size, seed_of(seed, name)) for name, size in zip(weights, sizes, strict=True)]
    return MixOrder(course, orders, np.cumsum([0, *sizes[:-1]]), seed)


def test_shares_are_exact_at_every_sample_but_for_a_few() -> None:
    order, share = make(WEIGHTS), np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    source, _ = order.draws(np.arange(20 * BLOCK))
    counts = np.stack([(source == number).cumsum() for number in range(3)], 1)
    for stratum in range(1, 320):
        assert np.abs(counts[stratum * STRATUM - 1] - share * stratum * STRATUM).max() < 3
    assert counts[-1, 2] == round(20 * BLOCK * share[2])  # a source of less than a sample a block gets its own
    assert all(order.drawn(n).tolist() == counts[n - 1].tolist() for n in (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 7777, 20 * BLOCK))
    assert order.drawn(0).tolist() == [0, 0, 0]


def test_a_source_s_samples_are_its_own_order() -> None:
    order = make(WEIGHTS, seed=4)
    rows, (source, draw) = order(np.arange(5000)), order.draws(np.arange(5000))
    first = 0
    for number, (name, size) in enumerate(SIZES.items()):
        here = source == number
        assert draw[here].tolist() == list(range(here.sum()))
        assert rows[here].tolist() == (first + Order(size, seed_of(4, name))(np.arange(here.sum()))).tolist()
        first += size


def test_another_source_moves_none_of_the_others_samples() -> None:
    few, many = make({"code": 1.0, "web": 2.0}), make({"books": 1.0, "web": 2.0, "code": 1.0})

    def rows_of(order: MixOrder, number: int, first: int) -> list[int]:
        numbers = np.arange(4000)
        found: list[int] = (order(numbers)[order.draws(numbers)[0] == number] - first)[:500].tolist()
        return found

    assert rows_of(few, 0, 0) == rows_of(many, 2, 1007)
    assert rows_of(few, 1, 300) == rows_of(many, 1, 7)


def test_it_is_a_pure_function_of_each_number() -> None:
    order, numbers = make(WEIGHTS), np.random.default_rng(0).integers(0, 10**7, 200)
    assert order(numbers).tolist() == [int(make(WEIGHTS)(np.array([n]))[0]) for n in numbers]
    assert order(np.arange(100)).tolist() != make(WEIGHTS, seed=1)(np.arange(100)).tolist()


def test_far_away_costs_as_little(monkeypatch: pytest.MonkeyPatch) -> None:
    arranged: list[int] = []
    arrange = MixOrder._arranged
    monkeypatch.setattr(MixOrder, "_arranged", lambda self, block: arranged.append(block) or arrange(self, block))
    order = make(WEIGHTS)
    for first in (0, 10**9, 10**12):
        arranged.clear()
        order(first + np.arange(4096))
        assert len(arranged) <= 4096 // BLOCK + 2


def test_within_a_stratum_sources_are_mixed() -> None:
    source, _ = make({"web": 1.0, "code": 1.0}).draws(np.arange(64 * BLOCK))
    changes = (np.diff(source) != 0).mean()
    assert abs(changes - 0.5) < 0.02  # a little more than by chance
    strata = source.reshape(-1, STRATUM)
    assert (strata.sum(1) == STRATUM // 2).all()
    assert len(np.unique(strata, axis=0)) == len(strata)


def test_a_source_is_read_as_often_as_it_may_be_and_no_more() -> None:
    order = make({"web": 1.0, "code": 1.0, "books": 1.0}, epochs=2)
    rows, total = order(np.arange(2614)), 2 * 1307
    assert np.bincount(rows).tolist() == [2] * 1307
    assert order.drawn(total).tolist() == [2000, 600, 14]
    with pytest.raises(UserError, match=r"used up after 2614 samples, as data.mix.max_epochs.* takes 2615.*max_steps"):
        order(np.array([2614]))
    with pytest.raises(UserError):
        order.insist_on(total + 1)
    order.insist_on(total)


def test_these_values_never_change() -> None:
    """Another order would break the resuming of every run that exists."""
    assert make(WEIGHTS)(np.array([0, 1, 2, 1023, 1024, 10**6])).tolist() == [1070, 101, 1222, 168, 905, 1291]
