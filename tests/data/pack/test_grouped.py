"""Rows by length: each once an epoch, alike in a batch, as wide on every process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.loader import StepLoader
from llmfactory.data.pack.grouped import GroupOrder
from llmfactory.data.pack.rows import Rows, shares
from llmfactory.data.pack.spec import Document, Grouped
from llmfactory.data.tokens import TokenFile

LENGTHS = [0, 3, 1, 17, 40, 7, 8, 9, 0, 5, 25, 30, 2, 2, 11]


@pytest.fixture
def rows(token_file: Callable[..., TokenFile]) -> Rows:
    return Grouped(group=4, multiple=4).build(token_file(LENGTHS), 18)


def test_they_are_the_rows_of_single_documents_sorted(rows: Rows) -> None:
    single = Document().build(rows.file, 18)
    every = single.read(np.arange(len(single)))
    sizes = (every["segments"] > 0).sum(1)
    order = sizes.argsort(stable=True)
    assert len(rows) == len(single)
    assert not rows.isolated
    for number in range(len(rows)):
        row = rows.read(np.array([number]))
        width = row["tokens"].shape[1]
        assert width == min(-(-int(sizes[order[number]]) // 4) * 4, 18)
        for name in row:
            assert torch.equal(row[name][0], every[name][order[number]][:width])


def test_every_target_stands_once(rows: Rows) -> None:
    batch = rows.read(np.arange(len(rows)))
    assert Counter(batch["labels"][batch["labels"] != IGNORE].tolist()) == Counter(rows.tokens[1:].tolist())


@pytest.mark.parametrize(("size", "group"), [(1, 4), (4, 4), (5, 4), (23, 4), (40, 7), (1000, 64), (3, 10)])
def test_each_epoch_takes_every_row_once_and_groups_stay_together(size: int, group: int) -> None:
    order = GroupOrder(size, group, 3)
    epochs = [order(np.arange(epoch * size, (epoch + 1) * size)) for epoch in range(4)]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(size))
        for start in range(0, size, group):
            some = np.sort(rows[start : start + group])
            assert some[-1] - some[0] == len(some) - 1
    if size > group + 1:
        assert any((one != epochs[0]).any() for one in epochs[1:])
    numbers = np.random.default_rng(0).integers(0, 4 * size, 50)
    assert order(numbers).tolist() == [int(epochs[n // size][n % size]) for n in numbers]


def test_the_short_group_is_not_always_the_longest_rows() -> None:
    last = [int(GroupOrder(23, 4, 0)(np.array([epoch * 23 + 22]))[0]) for epoch in range(60)]
    assert len(set(last)) > 10


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_is_as_wide_on_every_process(rows: Rows, world: int) -> None:
    whole = StepLoader(rows, batch_size=4, seed=1)
    parts = [iter(StepLoader(rows, batch_size=4, seed=1, rank=rank, world=world)) for rank in range(world)]
    widths = set()
    for batch in islice(whole, 30):
        pieces = [next(part) for part in parts]
        for name in batch:
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), batch[name])
        widths.add(batch["tokens"].shape[1])
        assert batch["tokens"].shape[1] - (batch["segments"] > 0).sum(1).max() < 4
    assert len(widths) > 2


def test_it_pads_less_than_single_documents(rows: Rows) -> None:
    costs, single = shares(rows), shares(Document().build(rows.file, 18))
    assert costs["cut_documents"] == single["cut_documents"] == 3 / len(LENGTHS)
    batches = [rows.read(np.arange(at, min(at + 4, len(rows)))) for at in range(0, len(rows), 4)]
    padding = sum(int((batch["segments"] == 0).sum()) for batch in batches) / sum(batch["tokens"].numel() for batch in batches)
    assert costs["padding"] == pytest.approx(padding)
    assert padding < single["padding"] / 2


def test_nothing_gives_no_row(token_file: Callable[..., TokenFile]) -> None:
    empty = Grouped().build(token_file([]), 8)
    assert (len(empty), empty.places()) == (0, 0)
