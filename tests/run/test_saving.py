"""Which checkpoints are written and kept, and what is asked of the disk (llmfactory.run.saving)."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from toy_job import Memory, prepared, toy_job, train

from llmfactory.checkpoint import files as files_module
from llmfactory.checkpoint import io
from llmfactory.checkpoint.files import STATE
from llmfactory.core.errors import UserError


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"trainer__save_every": 2, "trainer__keep_last": 2}, [6, 8]),
        ({"trainer__save_every": 3, "trainer__keep_last": 1, "trainer__eval_every": None}, [8]),
        ({"trainer__save_every": None}, [8]),
        ({"trainer__save_every": 100, "trainer__keep_last": 1, "trainer__keep_best": False}, [8]),
    ],
)
def test_what_is_kept(tmp_path: Path, changes: dict[str, Any], left: list[int]) -> None:
    train(toy_job(tmp_path, **changes), tmp_path / "run")
    assert [io.step_of(path) for path in io.checkpoints(tmp_path / "run" / "checkpoints")] == left


def test_no_room_for_a_checkpoint_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = toy_job(tmp_path)
    prepared(job)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    tracker = Memory()
    with pytest.raises(UserError, match=r"a checkpoint of this run needs \d+ bytes .* only 1000 bytes"):
        train(job, tmp_path / "run", tracker)
    assert not tracker.rows


def test_a_best_step_off_the_beat_is_saved_too(tmp_path: Path) -> None:
    job = toy_job(tmp_path, trainer__max_steps=7, trainer__eval_every=5, trainer__save_every=6, trainer__keep_last=1)
    fitted, _ = train(job, tmp_path / "run")
    assert fitted.best_step == 5
    assert [io.step_of(path) for path in io.checkpoints(tmp_path / "run" / "checkpoints")] == [5, 7]


# ---- in the background


def files(folder: Path) -> dict[str, Any]:
    """All files of all checkpoints, but for what depends on the clock, on save_async itself, and on the order of two keys in the
    head of a safetensors file, which its library draws."""
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    for name, content in list(found.items()):
        if name.endswith("config.yaml"):
            del found[name]
        elif name.endswith(STATE):
            found[name] = {key: value for key, value in json.loads(content).items() if key not in ("seconds", "files")}
        elif name.endswith(".safetensors"):
            start = 8 + int.from_bytes(content[:8], "little")
            found[name] = json.loads(content[8:start]), content[start:]
    return found


def test_written_in_the_background_they_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"trainer__save_every": 2, "trainer__keep_last": 9, "model__dropout": 0.1}
    _, one = train(toy_job(tmp_path, **changes), tmp_path / "plain")
    threads, write = [], io.write

    def watched(*arguments: Any) -> Path:
        threads.append(threading.current_thread().name)
        time.sleep(0.05)  # steps go on meanwhile, and change the weights
        return write(*arguments)

    monkeypatch.setattr(io, "write", watched)
    other, curve = train(toy_job(tmp_path, **changes, trainer__save_async=True), tmp_path / "background")
    assert threads == ["checkpoint"] * 4
    assert curve.curve() == one.curve()
    assert other.checkpoint == tmp_path / "background" / "checkpoints" / "step_00000008"
    expected = files(tmp_path / "plain" / "checkpoints")
    assert sum(name.endswith(".safetensors") for name in expected) == 8
    assert files(tmp_path / "background" / "checkpoints") == expected


def test_one_is_under_way_at_most_and_the_end_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_now, write = [], io.write

    def slow(folder: Path, step: int, *rest: Any) -> Path:
        open_now.append(step)
        assert len(open_now) == 1
        time.sleep(0.1)
        path = write(folder, step, *rest)
        open_now.remove(step)
        return path

    monkeypatch.setattr(io, "write", slow)
    job = toy_job(tmp_path, trainer__save_every=1, trainer__keep_last=9, trainer__save_async=True, trainer__max_steps=3)
    train(job, tmp_path / "run")
    assert [io.step_of(path) for path in io.checkpoints(tmp_path / "run" / "checkpoints")] == [1, 2, 3]


def test_a_failure_in_the_background_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = toy_job(
        tmp_path, trainer__save_every=2, trainer__save_async=True, trainer__max_steps=2000, optim__schedule__horizon=2000
    )
    prepared(job)

    def full(path: Path, value: Any) -> None:
        if "step_00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        files_module.write_json(path, value)

    monkeypatch.setattr(io, "write_json", full)
    tracker = Memory()
    with pytest.raises(
        UserError, match=r"the checkpoint of step 4 could not be written .* the disk is full; nothing of it is left"
    ):
        train(job, tmp_path / "run", tracker)
    assert max(tracker.rows) <= 6, "the next checkpoint would have been that of step 6"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_run_that_fails_keeps_the_checkpoint_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = io.write
    monkeypatch.setattr(io, "write", lambda *arguments: time.sleep(0.2) or write(*arguments))

    class Broken(Memory):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            if step == 5:
                raise UserError("the tracker is gone")

    with pytest.raises(UserError, match="the tracker is gone"):
        train(toy_job(tmp_path, trainer__save_async=True), tmp_path / "run", Broken())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]
