"""Catalogue of learning-rate schedules: pure functions from the step to a factor of the peak learning rate.

Steps count from 0 (the first optimizer step). During warm-up the factor is (step + 1) / warmup_steps, so the first step
moves and step warmup_steps - 1 is the first at the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between

Schedule = Callable[[int], float]
S = TypeVar("S", bound="ScheduleSpec")


@dataclass(kw_only=True, slots=True)
class ScheduleSpec(Spec):
    """Base of the schedules."""

    warmup_steps: int = 0
    """Steps of linear growth from (almost) zero to the peak."""
    warmup_share: float | None = None
    """The same as a share of the steps up to the schedule's end, or, if it has none, to trainer.max_steps; None: `warmup_steps`
    says."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "warmup_steps")
        yield from between(self, 0.0, 1.0, "warmup_share")
        if self.warmup_steps > 0 and self.warmup_share is not None:
            yield Problem("warmup_steps", self.warmup_steps, f"warmup_share={self.warmup_share} says it too", "warmup_steps=0")

    def pinned_horizon(self) -> int | None:
        """The last step that shapes this schedule if that does not depend on max_steps; None: it does depend."""
        return 0 if self.warmup_share is None else None

    def end(self, max_steps: int) -> int:
        """The step up to which shares are counted."""
        return max_steps

    def warmup(self, max_steps: int) -> int:
        """Steps of the warm-up, however they were said."""
        return self.warmup_steps if self.warmup_share is None else round(self.warmup_share * self.end(max_steps))

    def in_steps(self: S, max_steps: int) -> S:
        """The same schedule, its warm-up said in steps."""
        return replace(self, warmup_steps=self.warmup(max_steps), warmup_share=None)

    def build(self, max_steps: int) -> Schedule:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of optim/schedule")


@dataclass(kw_only=True, slots=True)
class DecaySpec(ScheduleSpec):
    """Base of the schedules that end somewhere."""

    horizon: int | None = None
    """Step at which the decay ends; None: trainer.max_steps. A number makes every shorter run a prefix of the longer one."""
    floor: float = 0.1
    """Factor at the horizon and from there on."""
    goes_on: bool = False
    """The run may go on at the floor after the horizon (GPT-3); otherwise a longer run is refused."""

    def problems(self) -> Iterator[Problem]:
        yield from ScheduleSpec.problems(self)
        if self.goes_on and self.horizon is None:
            yield Problem("goes_on", True, "the schedule ends with the run, unless a horizon is given", "goes_on=false")
        yield from at_least(self, 1, "horizon")
        yield from between(self, 0.0, 1.0, "floor")
        if self.horizon is not None and self.horizon <= (steps := self.warmup(self.horizon)):
            repair = "horizon=null" if self.warmup_share is None else "warmup_share=0.1"
            yield Problem("horizon", self.horizon, f"ends within the warm-up of {steps} steps", repair)

    def pinned_horizon(self) -> int | None:
        return self.horizon

    def end(self, max_steps: int) -> int:
        return self.horizon or max_steps


@dataclass(kw_only=True, slots=True)
class Constant(ScheduleSpec):
    """The peak, after the warm-up."""

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.constant import constant

        return constant(self.in_steps(max_steps))


@dataclass(kw_only=True, slots=True)
class Linear(DecaySpec):
    """A straight line from the peak to the floor (BERT)."""

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.linear import linear

        return linear(self.in_steps(max_steps), self.end(max_steps))


@dataclass(kw_only=True, slots=True)
class Cosine(DecaySpec):
    """Half a cosine from the peak to the floor (Loshchilov and Hutter 2017, equation 5, one period)."""

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.cosine import cosine

        return cosine(self.in_steps(max_steps), self.end(max_steps))


@dataclass(kw_only=True, slots=True)
class Polynomial(DecaySpec):
    """(1 - share of the decay that has passed)^power, from the peak to the floor (BERT's, with power 1; DeepLab's, with 0.9)."""

    power: float = 2.0
    """1 is a straight line, more falls fast at first, less falls fast at the end."""

    def problems(self) -> Iterator[Problem]:
        yield from DecaySpec.problems(self)
        yield from above(self, 0.0, "power", repair=2.0)

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.polynomial import polynomial

        return polynomial(self.in_steps(max_steps), self.end(max_steps))


@dataclass(kw_only=True, slots=True)
class CosineRestarts(DecaySpec):
    """Cosines from the peak to the floor one after the other, each of them longer or shorter than the one before by a factor
    (SGDR, Loshchilov and Hutter 2017)."""

    periods: int = 4
    """Number of cosines up to the horizon; from there on the floor stays."""
    factor: float = 1.0
    """Length of a period as a multiple of the one before, T_mult."""

    def problems(self) -> Iterator[Problem]:
        yield from DecaySpec.problems(self)
        yield from at_least(self, 1, "periods")
        yield from above(self, 0.0, "factor", repair=1.0)

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.cosine_restarts import cosine_restarts

        return cosine_restarts(self.in_steps(max_steps), self.end(max_steps))


@dataclass(kw_only=True, slots=True)
class OneCycle(DecaySpec):
    """Half a cosine up to the peak, half a cosine down to the floor (Smith and Topin 2018, as PyTorch anneals it)."""

    start: float = 0.04
    """Factor at the first step; the way up takes `warmup_steps`."""
    floor: float = 0.0004
    """Factor at the horizon and from there on."""

    def problems(self) -> Iterator[Problem]:
        yield from DecaySpec.problems(self)
        yield from between(self, 0.0, 1.0, "start")

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.one_cycle import one_cycle

        return one_cycle(self.in_steps(max_steps), self.end(max_steps))


class Decay(Enum):
    """How the rate falls from the peak to the floor; s is the share of the decay that has passed."""

    linear = "1 - s"
    one_minus_sqrt = "1 - sqrt(s) (Haegele et al. 2024, equation 1)"
    cosine = "(1 + cos(pi s)) / 2"


@dataclass(kw_only=True, slots=True)
class Wsd(DecaySpec):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4): the peak, and at the end a way down to the floor."""

    decay_share: float = 0.2
    """Share of the horizon that the final decay takes."""
    decay: Decay = Decay.linear
    """Its form."""

    def problems(self) -> Iterator[Problem]:
        yield from DecaySpec.problems(self)
        yield from between(self, 0.0, 1.0, "decay_share")

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.wsd import wsd

        return wsd(self.in_steps(max_steps), self.end(max_steps))


@dataclass(kw_only=True, slots=True)
class InverseSqrt(ScheduleSpec):
    """sqrt(warmup / step) after the warm-up (Vaswani et al. 2017, equation 3); without an end, so a run can always go on."""

    flat: bool = False
    """The steps of the warm-up are made at the peak rate: 1 / sqrt(max(step, warmup)) but for a factor (T5, PaLM)."""

    def build(self, max_steps: int) -> Schedule:
        from llmfactory.optim.schedule.inverse_sqrt import inverse_sqrt

        return inverse_sqrt(self.in_steps(max_steps))
