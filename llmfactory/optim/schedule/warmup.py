"""Linear warm-up, the start of every schedule: (step + 1) / warmup_steps, so that the first step already moves."""

from __future__ import annotations


def warmup(step: int, steps: int) -> float:
    """Factor at a step (from 0); 1 from step `steps - 1` on."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def share_done(step: int, start: int, end: int) -> float:
    """How much of the decay from step `start` (0: still at the peak) to step `end` (1: at the floor) has passed."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
