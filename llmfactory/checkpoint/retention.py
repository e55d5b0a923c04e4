"""Which checkpoints are kept: the newest few, and the best one."""

from __future__ import annotations

from pathlib import Path

from llmfactory.checkpoint.files import discard
from llmfactory.checkpoint.io import checkpoints, step_of


def prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all complete checkpoints but the newest `keep_last` and that of `best_step`."""
    found = checkpoints(folder)
    for path in found[:-keep_last]:
        if step_of(path) != best_step:
            discard(path)
