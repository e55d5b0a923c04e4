"""Worker processes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfactory.launch.agent import Share, run_share
from llmfactory.launch.spec import Local, Worker


def run_local(spec: Local, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """See `LaunchSpec.run`."""
    share = Share(processes=spec.processes, max_restarts=spec.max_restarts)
    return run_share(share, worker, config, folder, spec.threads)
