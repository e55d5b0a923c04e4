"""Which checkpoints are kept: the newest few, and the best one."""

from __future__ import annotations

from pathlib import Path

from llmfactory.checkpoint.files import discard
from llmfactory.checkpoint.io import checkpoints, step_of


def prune(folder: Path, keep_last: int, best_step: int | None) -> list[Path]:
    """Delete all complete checkpoints but the newest `keep_last` and that of `best_step`; returns what was deleted."""
    found = checkpoints(folder)
    gone = [path for path in found[:-keep_last] if step_of(path) != best_step]
    for path in gone:
        discard(path)
    return gone
