"""How far a training run has come: what its callbacks share and a checkpoint keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent training: evaluation and saving are left out."""

    seconds: float = 0.0
    since: float | None = None

    def read(self) -> float:
        """Seconds so far; starts the watch if it stands still."""
        now = time.perf_counter()
        if self.since is not None:
            self.seconds += now - self.since
        self.since = now
        return self.seconds

    def stop(self) -> None:
        """Stand still until `read` is called again."""
        self.read()
        self.since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done inside."""
        self.stop()
        yield
        self.read()


@dataclass(slots=True)
class Progress:
    """The state of a run that is neither weights nor optimizer."""

    step: int = 0
    """Optimizer steps done."""
    tokens: float = 0.0
    """Tokens seen, padding not counted."""
    best_loss: float | None = None
    """Lowest held-out loss so far."""
    best_step: int | None = None
    """Its step."""
    stale: int = 0
    """Evaluations since then."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    evaluated_step: int | None = None
    """Step of the last evaluation; not kept in checkpoints."""
    stopped: str | None = None
    """Why training ended before its last step: "early" or "terminated"; not kept in checkpoints."""

    def evaluated(self, loss: float) -> bool:
        """Take note of a held-out loss at the current step; whether it is the lowest so far."""
        self.evaluated_step = self.step
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.stale = loss, self.step, 0
            return True
        self.stale += 1
        return False

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether so many evaluations (None: any number) went by without a lower loss."""
        return patience is not None and self.stale >= patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = ("step", "tokens", "best_loss", "best_step", "stale")
        return {**{name: getattr(self, name) for name in kept}, "seconds": self.watch.seconds}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Progress:
        """From a checkpoint's state."""
        kept = ("step", "tokens", "best_loss", "best_step", "stale")
        return cls(**{name: state[name] for name in kept}, watch=Stopwatch(state["seconds"]))
