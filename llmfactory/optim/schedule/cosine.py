"""Half a cosine from the peak to the floor (Loshchilov and Hutter 2017, equation 5, one period without restart)."""

from __future__ import annotations

import math

from llmfactory.optim.schedule.spec import Cosine, Schedule
from llmfactory.optim.schedule.warmup import share_done, warmup


def cosine(spec: Cosine, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        share = share_done(step, spec.warmup_steps, horizon)
        return spec.floor + (1.0 - spec.floor) * 0.5 * (1.0 + math.cos(math.pi * share))

    return factor
