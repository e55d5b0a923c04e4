"""Cosine annealing with warm restarts (SGDR, Loshchilov and Hutter 2017, equation 5): period i is factor^i times as long as the
first, and all of them together end at the horizon."""

from __future__ import annotations

import math
from itertools import accumulate

from llmfactory.optim.schedule.spec import CosineRestarts, Schedule
from llmfactory.optim.schedule.warmup import warmup


def cosine_restarts(spec: CosineRestarts, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    lengths = [spec.factor**number for number in range(spec.periods)]
    ends = [end / sum(lengths) for end in accumulate(lengths)]
    way = max(1, horizon - spec.warmup_steps)

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        share = (step - spec.warmup_steps) / way
        start = 0.0
        for end in ends:
            if share < end:
                return spec.floor + (1.0 - spec.floor) * 0.5 * (1.0 + math.cos(math.pi * (share - start) / (end - start)))
            start = end
        return spec.floor

    return factor
