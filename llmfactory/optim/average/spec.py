"""Catalogue of averages: which weights a run is measured with, saves and hands on, if not those that it trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between

if TYPE_CHECKING:
    from llmfactory.optim.average.average import Average


@dataclass(kw_only=True, slots=True)
class AverageSpec(Spec):
    """Base of the averages."""

    def copies(self) -> int:
        """How many numbers it keeps for each weight that learns."""
        return 1

    def first_step(self, max_steps: int) -> int:
        """After so many steps there is an average at the earliest; before, the weights themselves are used."""
        return 0

    def build(self, max_steps: int) -> Average | None:
        """None: there is none."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of optim/average")


@dataclass(kw_only=True, slots=True)
class None_(AverageSpec):
    """The weights that are trained are those that are used."""

    def copies(self) -> int:
        return 0

    def build(self, max_steps: int) -> Average | None:
        return None


@dataclass(kw_only=True, slots=True)
class Ema(AverageSpec):
    """A running mean that forgets: mean <- decay mean + (1 - decay) weights (Polyak and Juditsky 1992 with a decay, as in Tarvainen and
    Valpola 2017, equation 1)."""

    decay: float = 0.999
    """Share of the mean that an update keeps: it reaches back about 1 / (1 - decay) updates."""
    warmup: float | None = 10.0
    """Update n, counted from 0, keeps at most (1 + n) / (warmup + n), so that the first weights are soon forgotten; None: `decay`
    from the start."""
    every: int = 1
    """Steps between updates."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "decay")
        yield from at_least(self, 1, "every")
        yield from above(self, 0.0, "warmup", repair=10.0)

    def build(self, max_steps: int) -> Average | None:
        from llmfactory.optim.average.ema import EmaAverage

        return EmaAverage(self)


@dataclass(kw_only=True, slots=True)
class Swa(AverageSpec):
    """Stochastic weight averaging: the equal mean of the weights along the last part of the run (Izmailov et al. 2018, algorithm 1)."""

    start_step: int | None = None
    """Steps after which the first weights are taken; None: `start_share` says."""
    start_share: float | None = None
    """The same as a share of trainer.max_steps; None: `start_step` says, and without that three quarters."""
    every: int = 1
    """Steps between weights that are taken, c in the paper."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "start_step")
        yield from between(self, 0.0, 1.0, "start_share")
        yield from at_least(self, 1, "every")
        if self.start_step is not None and self.start_share is not None:
            yield Problem("start_share", self.start_share, f"start_step={self.start_step} says it too", "start_share=null")

    def first_step(self, max_steps: int) -> int:
        if self.start_step is not None:
            return self.start_step
        return round((0.75 if self.start_share is None else self.start_share) * max_steps)

    def build(self, max_steps: int) -> Average | None:
        from llmfactory.optim.average.swa import SwaAverage

        return SwaAverage(self, self.first_step(max_steps))


@dataclass(kw_only=True, slots=True)
class Lawa(AverageSpec):
    """Latest weight averaging: the equal mean of the last few weights, taken at even distances (Kaddour 2022, section 2)."""

    last: int = 5
    """How many are kept and averaged, k in the paper; at first as many as there are."""
    every: int = 100
    """Steps between them."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "last", "every")

    def copies(self) -> int:
        return self.last

    def first_step(self, max_steps: int) -> int:
        return self.every

    def build(self, max_steps: int) -> Average | None:
        from llmfactory.optim.average.lawa import LawaAverage

        return LawaAverage(self)
