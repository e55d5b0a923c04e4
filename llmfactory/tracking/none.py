"""Metrics are shown and then forgotten."""

from __future__ import annotations

from llmfactory.tracking.tracker import Tracker


class NoTracker(Tracker):
    """Also the tracker of every process but rank 0."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def finish(self, summary: dict[str, float]) -> None:
        pass
