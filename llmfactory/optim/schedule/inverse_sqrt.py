"""sqrt(warmup / step) after the warm-up (Vaswani et al. 2017, equation 3, scaled so that its peak is 1).

Steps count from 0 here and from 1 in the paper; without a warm-up the peak is the first step.
"""

from __future__ import annotations

import math

from llmfactory.optim.schedule.spec import InverseSqrt, Schedule
from llmfactory.optim.schedule.warmup import warmup


def inverse_sqrt(spec: InverseSqrt) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    peak = max(1, spec.warmup_steps)

    def factor(step: int) -> float:
        if step < peak:
            return 1.0 if spec.flat else warmup(step, spec.warmup_steps)
        return math.sqrt(peak / (step + 1))

    return factor
