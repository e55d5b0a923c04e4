"""What one layout leaves, another takes up: checkpoints, signals and errors over several processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.checkpoint import io
from llmfactory.checkpoint.files import STATE
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.objective.causal import CausalObjective
from llmfactory.parallel.spec import Mesh
from llmfactory.run.fit import fit

pytestmark = pytest.mark.dist


def make(folder: Path, **changes: Any) -> Job:
    return toy_job(folder, **{"parallel": Mesh(dp_replicate=None), "model__dropout": 0.1, **changes})


def train(
    job: Job, folder: Path, tracker: Memory | None = None
) -> tuple[dict[str, torch.Tensor], dict[int, Any], str, float | None]:
    tracker = tracker or Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    return {k: v.clone() for k, v in fitted.model.state_dict().items()}, tracker.curve(), fitted.stopped, fitted.best_loss


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, joined."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    found = {
        name: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in io.read_state(path)["tensors"].items()
    }
    load(found, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return found


def resave(job: Job, folder: Path) -> None:
    """Restore the last checkpoint under this layout and write it again as a later step, with nothing trained in between."""

    from llmfactory.run import saving

    before = saving.Saving.on_fit_start

    def on_fit_start(self: Any, trainer: Any, stage: Any) -> None:
        before(self, trainer, stage)
        world = self.strategy.world
        io.save(folder / "again", 1, stage.model, trainer.optimizers[0], {}, world)

    saving.Saving.on_fit_start = on_fit_start
    try:
        fit(job, prepared(job), folder, Memory(), Notes())
    finally:
        saving.Saving.on_fit_start = before


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 3)])
def test_restores_bit_equal_under_another_layout(tmp_path: Path, first: int, second: int) -> None:
    """Weights and optimizer state, down to the last bit."""
    job = make(tmp_path, trainer__max_steps=4)
    pool.run(first, train, job, tmp_path / "run")
    pool.run(second, resave, job, tmp_path / "run")
    before, after = tensors(io.latest(tmp_path / "run" / "checkpoints")), tensors(tmp_path / "run" / "again" / "step_00000001")
    assert before.keys() == after.keys()
    assert sum(name.startswith("optimizer.") for name in before) == 3 * sum(not name.startswith("optimizer.") for name in before)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_goes_on_with_the_same_samples_under_another_layout(tmp_path: Path) -> None:
    """Without dropout, whose masks depend on the layout, the curve is the unbroken one up to rounding."""
    whole = make(tmp_path, model__dropout=0.0)
    ((_, reference, _, held_out),) = pool.run(1, train, whole, tmp_path / "one")
    folder = tmp_path / "moved"
    pool.run(1, train, make(tmp_path, model__dropout=0.0, trainer__max_steps=3), folder)
    results = pool.run(2, train, whole, folder)
    for _, curve, _, its_held_out in results:
        assert list(curve) == [4, 5, 6, 7, 8]
        for step, row in curve.items():
            assert float(row["loss"]) == pytest.approx(float(reference[step]["loss"]), rel=1e-5)
        assert its_held_out == pytest.approx(held_out, rel=1e-5)


def test_two_processes_resume_bit_equal(tmp_path: Path) -> None:
    reference = pool.run(2, train, make(tmp_path), tmp_path / "unbroken")
    pool.run(2, train, make(tmp_path, trainer__max_steps=3), tmp_path / "run")
    again = pool.run(2, train, make(tmp_path), tmp_path / "run")
    for (weights, curve, _, loss), (its_weights, its_curve, _, its_loss) in zip(again, reference, strict=True):
        assert curve == {step: its_curve[step] for step in range(4, 9)}
        assert all(torch.equal(weights[name], tensor) for name, tensor in its_weights.items())
        assert loss == its_loss
    assert all(torch.equal(reference[0][0][name], tensor) for name, tensor in reference[1][0].items()), "the same on all ranks"


class TermOnRankOne(Memory):
    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == 3 and "loss" in metrics and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    results = pool.run(2, train, make(tmp_path), tmp_path / "run", TermOnRankOne())
    assert [stopped for *_, stopped, _ in results] == ["terminated", "terminated"]
    assert results[0][1].keys() == results[1][1].keys()
    path = io.latest(tmp_path / "run" / "checkpoints")
    assert io.step_of(path) == max(results[0][1]) < 8
    assert (path / STATE).is_file()


def poisoned(job: Job, folder: Path) -> str:
    """The loss of one process is NaN in step 3."""
    plain, passes = CausalObjective.__call__, 0

    def call(objective: CausalObjective, outputs: Any, batch: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        total, count = plain(objective, outputs, batch)["loss"]
        broken = os.environ["RANK"] == "1" and passes == 3 and torch.is_grad_enabled()
        return {"loss": (total * torch.nan if broken else total, count)}

    with mock.patch.object(CausalObjective, "__call__", call), pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


def test_nan_in_one_process_stops_all(tmp_path: Path) -> None:
    messages = pool.run(2, poisoned, make(tmp_path, trainer__save_every=1), tmp_path / "run")
    assert messages[0] == messages[1]
    assert "step 3: the loss is nan" in messages[0]
    assert io.step_of(io.latest(tmp_path / "run" / "checkpoints")) == 2


def full_disk(job: Job, folder: Path) -> str:
    """Rank 1 cannot flush its shard."""
    import errno

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    prepared(job)  # which flushes too
    flush = full if os.environ["RANK"] == "1" else os.fsync
    with mock.patch.object(os, "fsync", flush), pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


def test_a_full_disk_in_one_process_stops_all(tmp_path: Path) -> None:
    messages = pool.run(2, full_disk, make(tmp_path), tmp_path / "run")
    assert messages[0] == messages[1]
    assert "the checkpoint of step 4 could not be written" in messages[0]
    assert "the disk is full" in messages[0]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def damaged(job: Job, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


def test_a_damaged_shard_stops_all(tmp_path: Path) -> None:
    pool.run(2, train, make(tmp_path, trainer__max_steps=4), tmp_path / "run")
    shards = sorted(io.latest(tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert len(shards) == 4, "each process writes what it owns"
    os.truncate(shards[-1], 10)
    for message in pool.run(2, damaged, make(tmp_path), tmp_path / "run"):
        assert f"{shards[-1]} is damaged: 10 bytes instead of" in message


def layout(job: Job, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


def test_too_many_processes_for_the_layout(tmp_path: Path) -> None:
    job = make(tmp_path, parallel=Mesh(dp_replicate=1))
    for message in pool.run(2, layout, job, tmp_path / "run"):
        assert message.startswith("the parallel layout pp=1 x dp_replicate=1 x")
        assert message.endswith("needs 1 processes, but 2 were started")
