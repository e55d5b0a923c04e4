"""A batch that grows: its sizes against a loop, and a run against steps made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_job import prepared, toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.core.errors import ConfigError
from llmfactory.core.sizes import Sizes
from llmfactory.data.loader import StepLoader
from llmfactory.run.batch_ramp.spec import BatchRampSpec, Linear, Staged
from llmfactory.run.spec import Trainer
from llmfactory.stage.rows import task_rows

RAMP = Linear(start=2, increment=3, rows=12)
"""Of 2, 5, 8 and 11 rows."""


def megatron(start: int, increment: int, samples: float, full: int, steps: int) -> list[int]:
    """Rows of each step as `RampupBatchsizeNumMicroBatchesCalculator` updates them, by the samples consumed so far."""
    each = samples / ((full - start) / increment)
    found, consumed = [], 0
    for _ in range(steps):
        size = full if consumed >= samples else start + int(consumed / each) * increment
        found.append(size)
        consumed += size
    return found


@pytest.mark.parametrize(
    ("spec", "full", "seq_len", "loop"),
    [
        (RAMP, 11, 8, (2, 3, 12.0)),
        (Linear(start=16, tokens=64e3), 160, 32, (16, 16, 2000.0)),
        (Linear(start=192, increment=16, rows=9765), 2048, 1, (192, 16, 9765.0)),
        (Linear(start=1, rows=1), 4, 1, (1, 1, 1.0)),
    ],
)
def test_sizes_are_those_of_megatron(spec: Linear, full: int, seq_len: int, loop: tuple[int, int, float]) -> None:
    """`start`, `increment`, `rows`, `tokens`."""
    sizes = Trainer(max_steps=1, batch_size=full, batch_ramp=spec).sizes(seq_len)
    assert [sizes.rows(step) for step in range(400)] == megatron(*loop, full, 400)


def test_a_last_increment_may_be_smaller() -> None:
    sizes = Trainer(max_steps=1, batch_size=7, batch_ramp=Linear(start=2, increment=4, rows=10)).sizes(1)
    assert [sizes.rows(step) for step in range(6)] == [2, 2, 2, 6, 7, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 2}, "how many tokens, or rows"),
        ({"start": 2, "rows": 5, "tokens": 5}, "says it too"),
        ({"start": 0, "rows": 5}, "start"),
    ],
)
def test_what_is_no_ramp(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Linear(**settings)


def test_something_must_grow() -> None:
    with pytest.raises(ConfigError, match="nothing grows"):
        Trainer(max_steps=9, batch_size=8, batch_ramp=Linear(start=8, rows=5))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_of_samples_is_that_without_a_ramp(ranks: int, tmp_path: Path) -> None:
    """Whatever step a loader starts at, and over all ranks."""
    job = toy_job(tmp_path, trainer__batch_size=11, trainer__batch_ramp=RAMP)
    rows = task_rows(job, job.stage.objective.build(), prepared(job), "train")
    sizes = job.trainer.sizes(job.data.seq_len)
    order = rows.order(0)
    for start in (0, 3, 7):
        loaders = [
            iter(StepLoader(rows, batch_size=11, seed=0, rank=rank, world=ranks, start_step=start, sizes=sizes))
            for rank in range(ranks)
        ]
        for step in range(start, 12):
            whole = torch.cat([next(loader)["tokens"] for loader in loaders])
            expected = rows.read(order(np.arange(sizes.before(step), sizes.before(step + 1))))["tokens"]
            assert torch.equal(whole, expected), step


@pytest.mark.parametrize("ramp", [RAMP, Staged(rows=[3, 5], until=[2, 4])])
def test_a_run_with_a_growing_batch(ramp: BatchRampSpec, tmp_path: Path) -> None:
    """`trainer.batch_ramp`: each step is that of its own rows, in pieces or whole; a run that goes on in the middle of the ramp sees
    what it would have seen."""
    changes = {"trainer__batch_size": 11, "trainer__batch_ramp": ramp, "trainer__eval_every": None, "trainer__keep_best": False}
    job = toy_job(tmp_path, **changes, trainer__max_steps=7)
    whole, curve = train(job, tmp_path / "whole")
    sizes = job.trainer.sizes(32)
    assert [row["batch_rows"] for row in curve.rows.values()] == [sizes.rows(step) for step in range(7)]
    assert io.read_state(whole.checkpoint)["samples"] == sizes.before(7)
    assert 0 < io.read_state(whole.checkpoint)["tokens"] <= 32 * sizes.before(7)
    first = toy_job(
        tmp_path, **{**changes, "trainer__batch_ramp": type(job.trainer.batch_ramp)(**_never(ramp))}, trainer__max_steps=1
    )
    assert train(first, tmp_path / "first")[1].rows[1]["loss"] == curve.rows[1]["loss"]

    train(toy_job(tmp_path, **changes, trainer__max_steps=4), tmp_path / "broken")
    broken, rest = train(job, tmp_path / "broken")
    assert {step: curve.curve()[step] for step in (5, 6, 7)} == rest.curve()
    assert all(torch.equal(tensor, weights(broken)[name]) for name, tensor in weights(whole).items())

    _, others = train(toy_job(tmp_path, **changes, trainer__max_steps=7, trainer__micro_batch_size=2), tmp_path / "pieces")
    for step, row in others.rows.items():
        assert row["loss"] == pytest.approx(curve.rows[step]["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(curve.rows[step]["grad_norm"], rel=1e-4)


def _never(ramp: BatchRampSpec) -> dict[str, object]:
    """The same start, and an end that a short run does not see."""
    if isinstance(ramp, Staged):
        return {"rows": ramp.rows[:1], "until": [99]}
    assert isinstance(ramp, Linear)
    return {"start": ramp.start, "rows": 1e6}


def test_constant_sizes_are_one_piece() -> None:
    assert not Trainer(max_steps=9, batch_size=8).sizes(16).varies
    assert isinstance(Trainer(max_steps=9, batch_size=8).sizes(16), Sizes)
