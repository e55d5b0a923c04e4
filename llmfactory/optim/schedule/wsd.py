"""Warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4), with a straight line as the decay.

The stable part is the same whatever the horizon, so one run can be branched into several lengths.
"""

from __future__ import annotations

from llmfactory.optim.schedule.spec import Schedule, Wsd
from llmfactory.optim.schedule.warmup import share_done, warmup


def wsd(spec: Wsd, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    decay_start = max(spec.warmup_steps, horizon - round(spec.decay_share * horizon))

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        if step < decay_start:
            return 1.0
        return 1.0 - (1.0 - spec.floor) * share_done(step, decay_start, horizon)

    return factor
