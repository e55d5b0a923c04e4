"""The newest few and the best are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.checkpoint import files, io
from llmfactory.checkpoint.retention import prune


@pytest.mark.parametrize(
    ("keep_last", "best", "left"),
    [(2, None, [30, 40]), (1, 20, [20, 40]), (2, 40, [30, 40]), (9, 10, [10, 20, 30, 40]), (1, 99, [40])],
)
def test_what_is_left(tmp_path: Path, keep_last: int, best: int | None, left: list[int]) -> None:
    for step in (10, 20, 30, 40):
        path = io.path_of(tmp_path, step)
        path.mkdir()
        (path / files.STATE).write_text("{}")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    prune(tmp_path, keep_last, best)
    assert [io.step_of(path) for path in io.checkpoints(tmp_path)] == left
    assert len(list(tmp_path.iterdir())) == len(left) + 1
