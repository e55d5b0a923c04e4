"""The peak for ever, after the warm-up."""

from __future__ import annotations

from llmfactory.optim.schedule.spec import Constant, Schedule
from llmfactory.optim.schedule.warmup import warmup


def constant(spec: Constant) -> Schedule:
    """Factor of the peak learning rate at a step (from 0)."""
    return lambda step: warmup(step, spec.warmup_steps)
