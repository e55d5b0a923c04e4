"""Which rows a process reads: the same samples for any number of processes and from any step on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import ConfigError
from llmfactory.data import loader as loader_module
from llmfactory.data.loader import StepLoader, held_out_batches
from llmfactory.data.order import joined
from llmfactory.data.pack.rows import Rows
from llmfactory.data.pack.spec import Concat
from llmfactory.data.tokens import TokenFile

STEPS = 9


@pytest.fixture
def rows(token_file: Callable[..., TokenFile]) -> Rows:
    return Concat().build(token_file([9, 30, 2, 14, 60, 1, 25, 40]), 8)


@pytest.fixture(autouse=True)
def _few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that blocks of the order begin and end within these tests: every 2 steps alone, every 4 in two processes."""
    monkeypatch.setattr(loader_module, "AHEAD", 14)


def steps(rows: Rows, count: int, **settings: int | bool) -> list[dict[str, list[list[int]]]]:
    loader = StepLoader(rows, batch_size=7, seed=3, **settings)  # type: ignore[arg-type]
    return [{key: value.tolist() for key, value in batch.items()} for batch in islice(loader, count)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_read_what_one_process_reads(rows: Rows, world: int, shuffle: bool) -> None:
    alone = steps(rows, STEPS, shuffle=shuffle)
    ranks = [steps(rows, STEPS, rank=rank, world=world, shuffle=shuffle) for rank in range(world)]
    for step in range(STEPS):
        for key in alone[step]:
            assert [row for rank in ranks for row in rank[step][key]] == alone[step][key]
    sizes = [len(rank[0]["tokens"]) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("start", [1, 4, 5, 6])
def test_it_goes_on_where_it_stopped_on_any_number_of_processes(rows: Rows, start: int) -> None:
    alone = steps(rows, start + 3)
    assert steps(rows, 3, start_step=start) == alone[start:]
    parts = [steps(rows, 3, start_step=start, rank=rank, world=2) for rank in range(2)]
    assert [a["tokens"] + b["tokens"] for a, b in zip(*parts, strict=True)] == [step["tokens"] for step in alone[start:]]


def test_each_epoch_reads_every_row(rows: Rows) -> None:
    loader = StepLoader(rows, batch_size=7, seed=0)
    read = np.concatenate([loader.sample_ids(step) for step in range(3 * len(rows))])[: 21 * len(rows)].reshape(-1, len(rows))
    assert all(sorted(epoch.tolist()) == list(range(len(rows))) for epoch in read)


def test_sample_ids_are_the_rows_of_the_batches(rows: Rows) -> None:
    loader = StepLoader(rows, batch_size=5, seed=1, rank=1, world=2, start_step=2)
    for step, batch in zip(range(2, 5), loader, strict=False):
        assert torch.equal(batch["tokens"], rows.read(loader.sample_ids(step))["tokens"])


def test_without_shuffling_rows_come_in_order(rows: Rows) -> None:
    loader = StepLoader(rows, batch_size=4, seed=1, shuffle=False)
    assert [loader.sample_ids(step).tolist() for step in (0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert loader.sample_ids(len(rows))[0] == 0


def test_a_row_for_each_process_at_least(rows: Rows) -> None:
    with pytest.raises(ConfigError, match=r"trainer.batch_size = 2: 3 .*\n.*trainer.batch_size=3"):
        StepLoader(rows, batch_size=2, seed=0, world=3)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_held_out_rows_come_once_each(rows: Rows, world: int, batch_size: int) -> None:
    ranks = [list(held_out_batches(rows, batch_size=batch_size, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1  # collective operations need it
    labels = torch.cat([batch["labels"] for batches in zip(*ranks, strict=True) for batch in batches])
    kept = labels[(labels != IGNORE).any(1)]
    assert torch.equal(kept, rows.read(np.arange(len(rows)))["labels"])
    for batches in ranks:
        for batch in batches:
            assert len(batch["labels"]) >= 1
            if (batch["labels"] == IGNORE).all():
                assert not batch["segments"].any()


def test_a_limit_takes_rows_from_everywhere(rows: Rows) -> None:
    few = torch.cat([batch["tokens"] for batch in held_out_batches(rows, batch_size=2, limit=5)])
    chosen = [i * len(rows) // 5 for i in range(5)]
    assert torch.equal(few, rows.read(np.array(chosen))["tokens"])
    assert len(list(held_out_batches(rows, batch_size=1, limit=10**6))) == len(rows)


def test_nothing_held_out_gives_no_batch(token_file: Callable[..., TokenFile]) -> None:
    assert not list(held_out_batches(Concat().build(token_file([]), 8), batch_size=2))


@pytest.mark.parametrize("world", [1, 3])
def test_what_is_left_out_is_never_read(world: int, rows: Rows) -> None:
    """The steps read the rest of the order, one sample after the other, whoever reads and wherever it starts."""
    left_out = joined([(13, 20), (5, 7), (18, 26), (40, 40)])
    assert left_out == ((5, 7), (13, 26))
    order = rows.order(7)(np.arange(200))
    expected = np.concatenate([order[:5], order[7:13], order[26:]])
    for start in (0, 1, 2, 9):
        loaders = [
            StepLoader(rows, batch_size=6, seed=7, rank=rank, world=world, start_step=start, left_out=left_out)
            for rank in range(world)
        ]
        for step in range(start, start + 4):
            own = np.concatenate([loader.sample_ids(step) for loader in loaders])
            np.testing.assert_array_equal(own, expected[step * 6 : step * 6 + 6])
            np.testing.assert_array_equal(own, loaders[0].step(step)[1])
        for loader in loaders:
            first = next(iter(loader))
            assert all(torch.equal(first[name], field) for name, field in loader.batch(start).items())
