"""A power of what is left of the way: floor + (1 - floor) (1 - s)^p, s the share of the decay that has passed."""

from __future__ import annotations

from llmfactory.optim.schedule.spec import Polynomial, Schedule
from llmfactory.optim.schedule.warmup import share_done, warmup


def polynomial(spec: Polynomial, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        left: float = (1.0 - share_done(step, spec.warmup_steps, horizon)) ** spec.power
        return spec.floor + (1.0 - spec.floor) * left

    return factor
