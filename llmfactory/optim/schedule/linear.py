"""A straight line from the peak, reached at the end of the warm-up, to the floor at the horizon (Devlin et al. 2019)."""

from __future__ import annotations

from llmfactory.optim.schedule.spec import Linear, Schedule
from llmfactory.optim.schedule.warmup import share_done, warmup


def linear(spec: Linear, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        return 1.0 - (1.0 - spec.floor) * share_done(step, spec.warmup_steps, horizon)

    return factor
