"""Warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4).

The stable part is the same whatever the horizon, so one run can be branched into several lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llmfactory.optim.schedule.spec import Decay, Schedule, Wsd
from llmfactory.optim.schedule.warmup import share_done, warmup


def wsd(spec: Wsd, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    decay_start = max(spec.warmup_steps, horizon - round(spec.decay_share * horizon))

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return warmup(step, spec.warmup_steps)
        if step < decay_start:
            return 1.0
        return spec.floor + (1.0 - spec.floor) * LEFT[spec.decay](share_done(step, decay_start, horizon))

    return factor


LEFT: dict[Decay, Callable[[float], float]] = {
    Decay.linear: lambda share: 1.0 - share,
    Decay.one_minus_sqrt: lambda share: 1.0 - math.sqrt(share),
    Decay.cosine: lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}
"""What is left of the way from the peak to the floor."""
