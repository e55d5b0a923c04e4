"""The interface of stages that do not train: evaluate, generate, and what users add."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job


class StageJob(ABC):
    """Built by a stage's spec; runs in every process of the job."""

    @abstractmethod
    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        """Do it, and return the results as plain data (of rank 0 they are kept).

        `folder` is the run folder; None: the job was given no name, so it prints and leaves nothing behind.
        """
