"""Catalogue of guards: what is done when the loss or the gradients of a step stand out, or are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between

if TYPE_CHECKING:
    from llmfactory.guard.remedy import Remedy


class Statistic(Enum):
    """What a step is compared with."""

    median = "the median of the window; one unit is 1.4826 times the median distance from it, which spikes do not move"
    mean = "the mean of the window; one unit is its standard deviation"


@dataclass(kw_only=True, slots=True)
class GuardSpec(Spec):
    """Base of the guards."""

    def build(self) -> Remedy | None:
        """None: nobody watches; a step that is not finite ends the run."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of guard")


@dataclass(kw_only=True, slots=True)
class None_(GuardSpec):
    """A loss or a gradient norm that is not finite ends the run; nothing else is watched."""

    def build(self) -> Remedy | None:
        return None


@dataclass(kw_only=True, slots=True)
class WatchSpec(GuardSpec):
    """Base of the guards that compare each step with those before it: z = (value - center) / unit of a window of steps."""

    window: int = 128
    """Steps that a step is compared with: the last ones that reached the weights."""
    least: int = 32
    """Steps that there must have been before any is called a spike."""
    statistic: Statistic = Statistic.median
    """How center and unit are taken from the window."""
    loss_z: float | None = 8.0
    """A loss further above the center than so many units is a spike; None: losses are not compared."""
    norm_z: float | None = 12.0
    """The same of the gradient norm before clipping, which has a longer tail; None: norms are not compared."""
    floor: float = 0.02
    """Smallest unit, as a share of the center: what moves less than that is no spike, however still it was before."""
    name_rows: bool = True
    """After a spike, measure each row of its batch by itself and name the worst, with their documents."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 2, "window", "least")
        if self.least > self.window >= 2:
            yield Problem("least", self.least, f"the window holds {self.window} steps", f"least={self.window}")
        yield from above(self, 0.0, "loss_z", "norm_z", repair=8.0)
        yield from at_least(self, 0.0, "floor")


@dataclass(kw_only=True, slots=True)
class LimitedSpec(WatchSpec):
    """Base of the guards that let the run go on."""

    limit: int = 10
    """Decisions of a run; the next one ends it."""

    def problems(self) -> Iterator[Problem]:
        yield from WatchSpec.problems(self)
        yield from at_least(self, 1, "limit")


@dataclass(kw_only=True, slots=True)
class Report(WatchSpec):
    """Spikes are written down, and learned from like any other step; a step that is not finite ends the run."""

    def build(self) -> Remedy:
        from llmfactory.guard.report import ReportOnly

        return ReportOnly()


@dataclass(kw_only=True, slots=True)
class Stop(WatchSpec):
    """The first spike ends the run, before it reaches the weights."""

    def build(self) -> Remedy:
        from llmfactory.guard.stop import StopRun

        return StopRun()


@dataclass(kw_only=True, slots=True)
class Skip(LimitedSpec):
    """A spike does not reach the weights or the optimizer's state; the run goes on with the next batch."""

    def build(self) -> Remedy:
        from llmfactory.guard.skip import SkipStep

        return SkipStep()


@dataclass(kw_only=True, slots=True)
class Clip(LimitedSpec):
    """The gradients of a spike are cut back to what is usual; one that is not finite is skipped."""

    factor: float = 1.0
    """Largest gradient norm of a spike, as a multiple of the window's center (optim.clip_norm holds besides)."""

    def problems(self) -> Iterator[Problem]:
        yield from LimitedSpec.problems(self)
        yield from above(self, 0.0, "factor", repair=1.0)

    def build(self) -> Remedy:
        from llmfactory.guard.clip import ClipHarder

        return ClipHarder(self.factor)


@dataclass(kw_only=True, slots=True)
class LowerLr(LimitedSpec):
    """A spike is skipped, and the learning rate is lower for some steps."""

    factor: float = 0.5
    """The rate is multiplied by it, once for each spike that this still holds for."""
    steps: int = 500
    """How long, from the spike on."""

    def problems(self) -> Iterator[Problem]:
        yield from LimitedSpec.problems(self)
        yield from between(self, 0.0, 1.0, "factor")
        yield from at_least(self, 1, "steps")

    def build(self) -> Remedy:
        from llmfactory.guard.lower_lr import LowerRate

        return LowerRate(self.factor, self.steps)


@dataclass(kw_only=True, slots=True)
class Rewind(LimitedSpec):
    """The run goes back to a checkpoint from before the spike and goes on without the batches around it (Chowdhery et al. 2022,
    "PaLM", section 5.1: about 100 steps back, 200 to 500 batches left out)."""

    back: int = 100
    """Steps between the spike and the checkpoint, at least; where none is so old, the oldest one is taken, or the beginning."""
    before: int = 100
    """Batches before the spike's that are left out, of those after the checkpoint."""
    after: int = 100
    """Batches after the spike's that are left out."""

    def problems(self) -> Iterator[Problem]:
        yield from LimitedSpec.problems(self)
        yield from at_least(self, 1, "back")
        yield from at_least(self, 0, "before", "after")

    def build(self) -> Remedy:
        from llmfactory.guard.rewind import RewindRun

        return RewindRun(self.back, self.before, self.after)
