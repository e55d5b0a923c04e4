"""The order of samples: a bijection each epoch, the same everywhere, without a pattern."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.data.order import Order

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 100, 1000, 4097]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -3])
def test_each_epoch_takes_every_row_once(size: int, seed: int) -> None:
    order = Order(size, seed)
    for epoch in (0, 1, 1000):
        assert sorted(order(np.arange(epoch * size, (epoch + 1) * size)).tolist()) == list(range(size))


def test_it_is_a_pure_function_of_each_number() -> None:
    order, numbers = Order(1000, 7), np.random.default_rng(0).integers(0, 5000, 300)
    assert order(numbers).tolist() == [int(order(np.array([n]))[0]) for n in numbers]
    assert order(numbers).tolist() == Order(1000, 7)(numbers).tolist()


def test_these_values_never_change() -> None:
    """Another order would break the resuming of every run that exists."""
    assert Order(1000, 7)(np.array([0, 1, 2, 999, 1000, 10**12])).tolist() == [309, 276, 385, 849, 645, 17]


def test_epochs_and_seeds_differ() -> None:
    numbers = np.arange(1000)
    orders = [Order(1000, 0)(numbers), Order(1000, 0)(numbers + 1000), Order(1000, 1)(numbers), Order(1001, 0)(numbers)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # a random pair agrees in about 1 of 1000


def test_a_huge_corpus_costs_no_memory() -> None:
    size = 10**12
    found = Order(size, 3)(np.arange(10_000))
    assert len(np.unique(found)) == 10_000
    assert 0 <= found.min() <= found.max() < size
    assert abs(found.mean() / size - 0.5) < 0.02


def test_it_looks_random() -> None:
    """Places of rows over many epochs are uniform, also for a few rows, and neighbours are not kept together."""
    for size in (5, 12):
        epochs = 6000
        table = Order(size, 11)(np.arange(size * epochs)).reshape(epochs, size)
        counts = np.stack([np.bincount(table[:, place], minlength=size) for place in range(size)])
        chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
        freedom = (size - 1) ** 2
        assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)
    found = Order(100_000, 5)(np.arange(100_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02
    assert (np.abs(np.diff(found)) == 1).sum() < 20


def test_no_rows_no_order() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Order(0, 1)
