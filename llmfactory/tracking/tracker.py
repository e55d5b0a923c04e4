"""The interface of trackers. Only the process of rank 0 has one; the others get `NoTracker`."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Tracker(ABC):
    """Receives metrics while a job runs."""

    @abstractmethod
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of the optimizer step number `step` (the first is 1). Several calls for a step make one row."""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """The job goes on from a checkpoint of `step`: forget what was logged for later steps."""

    @abstractmethod
    def finish(self, summary: dict[str, float]) -> None:
        """The job is over; `summary` holds its final figures."""
