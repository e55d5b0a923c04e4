"""One cycle (Smith and Topin 2018) in the form of PyTorch's `OneCycleLR`: a cosine from `start` up to the peak, one down to `floor`."""

from __future__ import annotations

import math

from llmfactory.optim.schedule.spec import OneCycle, Schedule
from llmfactory.optim.schedule.warmup import share_done


def one_cycle(spec: OneCycle, horizon: int) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    top = spec.warmup_steps

    def factor(step: int) -> float:
        if step < top:
            return _between(spec.start, 1.0, step / top)
        return _between(1.0, spec.floor, share_done(step, top, horizon))

    return factor


def _between(first: float, last: float, share: float) -> float:
    """Half a cosine from one value to the other."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
