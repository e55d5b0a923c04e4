"""Which checkpoints are written and kept, and what is asked of the disk (llmfactory.run.saving)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_job import Memory, prepared, toy_job, train

from llmfactory.checkpoint import io
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
