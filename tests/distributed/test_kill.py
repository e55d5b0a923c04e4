"""SIGKILL at any moment, start again: metrics.csv and the weights are those of the run that was never killed.

Real processes are killed at random times, and at chosen points within saving and deleting checkpoints: at the n-th flush of
a file, before and after the rename, in the middle of a deletion.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Notes, prepared, toy_job

from llmfactory.parallel.spec import Mesh
from llmfactory.run.fit import fit
from llmfactory.tracking.csv import CsvTracker, read_metrics
from llmfactory.tracking.none import NoTracker

STEPS = 30
Death = tuple[str, float] | None
"""What the process dies at: ("time", seconds) after its start, or ("fsync", n), ("rename", n), ("renamed", n), ("rmtree", n)."""


def train(
    folder: Path,
    name: str,
    death: Death,
    layout: Mesh | None = None,
    dying: Sequence[int] = (0, 1),
    background: bool = False,
    steps: int = STEPS,
) -> dict[str, torch.Tensor]:
    """Train `name` to its end, or die, if this rank is one of those `dying`; the final weights."""
    job = toy_job(
        folder,
        model__dropout=0.1,
        parallel=layout or Mesh(dp_replicate=None),
        trainer__save_async=background,
        trainer__max_steps=steps,
        trainer__save_every=3,
        trainer__keep_last=2,
        trainer__eval_every=5,
        trainer__keep_best=False,
    )
    data = prepared(job)
    if death is not None and int(os.environ["RANK"]) in dying:
        arm(*death)
    run = folder / name
    run.mkdir(exist_ok=True)
    tracker = CsvTracker(run) if os.environ["RANK"] == "0" else NoTracker()
    return {name: tensor.clone() for name, tensor in fit(job, data, run, tracker, Notes()).model.state_dict().items()}


def arm(kind: str, count: float) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        calls = 0

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and not after:
                die()
            result = function(*arguments, **options)
            if calls == count:
                die()
            return result

        return call

    if kind == "time":
        threading.Timer(count, die).start()
    elif kind == "fsync":
        os.fsync = dying(os.fsync)
    elif kind in ("rename", "renamed"):
        os.rename = dying(os.rename, after=kind == "renamed")
    elif kind == "rmtree":
        os.unlink = dying(os.unlink)
        shutil.rmtree = lambda path, **options: [os.unlink(file) for file in sorted(Path(path).rglob("*")) if file.is_file()]


def rows(run: Path) -> list[dict[str, str]]:
    return [{key: cell for key, cell in row.items() if key != "tokens_per_second"} for row in read_metrics(run / "metrics.csv")]


CHANCE = random.Random(7)
CHAINS: list[list[Death]] = [
    [("fsync", 3), ("fsync", CHANCE.randrange(8, 60)), ("time", CHANCE.uniform(0.1, 0.4)), ("rename", 1)],
    [("renamed", 1), ("rmtree", 2), ("fsync", CHANCE.randrange(8, 60)), ("rename", 3)],
    [("time", CHANCE.uniform(0.05, 0.4)) for _ in range(3)],
]


@pytest.mark.dist
def test_killed_again_and_again(tmp_path: Path) -> None:
    (reference,) = pool.run(1, train, tmp_path, "unbroken", None)
    expected = rows(tmp_path / "unbroken")
    assert [row["step"] for row in expected] == [str(step) for step in range(1, STEPS + 1)]
    deaths = 0
    for number, chain in enumerate(CHAINS):
        name = f"run_{number}"
        for death in chain:
            with suppress(pool.Died):  # or it was done before
                pool.run(1, train, tmp_path, name, death, alone=True)
                deaths -= 1
            deaths += 1
        (weights,) = pool.run(1, train, tmp_path, name, None)
        assert rows(tmp_path / name) == expected
        assert all(torch.equal(weights[key], tensor) for key, tensor in reference.items())
        left = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert left == ["step_00000027", "step_00000030"]
    assert deaths >= 6, "those at chosen points; a random time may come after the end"


@pytest.mark.dist
def test_two_processes_killed_while_saving(tmp_path: Path) -> None:
    reference, _ = pool.run(2, train, tmp_path, "unbroken", None)
    for death in (("fsync", 20), ("rename", 2)):
        with pytest.raises(AssertionError):  # dead, or left alone by the dead
            pool.run(2, train, tmp_path, "run", death, alone=True)
    weights, again = pool.run(2, train, tmp_path, "run", None)
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    for key, tensor in reference.items():
        assert torch.equal(weights[key], tensor)
        assert torch.equal(again[key], tensor)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("layout", "background", "deaths"),
    [
        (Mesh(dp_shard=2), True, [(("fsync", 3), (1,)), (("rename", 2), (0,))]),
        (Mesh(tp=2), False, [(("fsync", 9), (0, 1)), (("renamed", 1), (0,))]),
        (Mesh(pp=2), True, [(("fsync", 5), (1,)), (("renamed", 1), (0,))]),
    ],
)
def test_killed_while_pieces_are_saved(
    tmp_path: Path, layout: Mesh, background: bool, deaths: list[tuple[Death, tuple[int, ...]]]
) -> None:
    """One process or both, at a flush of a file, before and after the folder gets its name: the run goes on from the last
    checkpoint that was whole, in the pieces of this layout."""
    reference, _ = pool.run(2, train, tmp_path, "unbroken", None, layout, (), background, 9)
    for death, dying in deaths:
        with pytest.raises(AssertionError):  # dead, or left alone by the dead
            pool.run(2, train, tmp_path, "run", death, layout, dying, background, 9, alone=True)
    weights, again = pool.run(2, train, tmp_path, "run", None, layout, (), background, 9)
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    for key, tensor in reference.items():
        assert torch.equal(weights[key], tensor)
        assert torch.equal(again[key], tensor)
