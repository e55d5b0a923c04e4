"""Catalogue of trackers: where metrics go while a job runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.tracking.tracker import Tracker


@dataclass(kw_only=True, slots=True)
class TrackingSpec(Spec):
    """Base of the trackers."""

    def build(self, folder: Path, config: dict[str, Any]) -> Tracker:
        """`folder` is the run's, `config` its resolved config."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of tracking")


@dataclass(kw_only=True, slots=True)
class None_(TrackingSpec):
    """Metrics are shown and then forgotten: no metrics.csv, no curves in the report."""

    def build(self, folder: Path, config: dict[str, Any]) -> Tracker:
        from llmfactory.tracking.none import NoTracker

        return NoTracker()


@dataclass(kw_only=True, slots=True)
class Csv(TrackingSpec):
    """metrics.csv in the run folder."""

    def build(self, folder: Path, config: dict[str, Any]) -> Tracker:
        from llmfactory.tracking.csv import CsvTracker

        return CsvTracker(folder)


class WandbMode(Enum):
    """How Weights & Biases is reached."""

    online = "sent while the job runs; needs a login"
    offline = "written to the run folder; `wandb sync` sends it later"


@dataclass(kw_only=True, slots=True)
class Wandb(TrackingSpec):
    """Weights & Biases, beside metrics.csv."""

    project: str = "llmfactory"
    """Project that the run is listed under."""
    entity: str | None = None
    """Team or user; None: the login's default."""
    mode: WandbMode = WandbMode.online
    """Online, or offline to be synced later."""
    tags: list[str] = field(default_factory=list)
    """Labels of the run."""

    def problems(self) -> Iterator[Problem]:
        if not self.project:
            yield Problem("project", self.project, "needs a name", "project=llmfactory")

    def build(self, folder: Path, config: dict[str, Any]) -> Tracker:
        from llmfactory.tracking.wandb import WandbTracker

        return WandbTracker(self, folder, config)
