"""Dynamic loss scaling (Micikevicius et al. 2018, section 3.2).

float16 has no numbers between 0 and 6e-8, where many gradients lie, so the loss is multiplied by a large number before the
backward pass and the gradients are divided by it after. When they overflow, the step is left out and the scale halves;
after `growth_interval` steps without overflow it doubles.

Everything is a tensor on the device and nothing is read back, so that a GPU is never waited for. Whether the gradients
overflowed is decided from the global gradient norm, so all processes decide alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 2.0**-16
"""A scale below this says that the gradients are non-finite for another reason than overflow."""


class LossScale:
    """The scale, the number of good steps since it last changed, and how many steps were left out so far."""

    def __init__(self, init_scale: float, growth_interval: int, device: str | torch.device = "cpu") -> None:
        self.growth_interval = growth_interval
        self.value = torch.tensor(init_scale, dtype=torch.float32, device=device)
        self.good_steps = torch.tensor(0, dtype=torch.int64, device=device)
        self.skipped = torch.tensor(0, dtype=torch.int64, device=device)

    def update(self, overflow: Tensor) -> None:
        """After a step: a bool scalar, whether its gradients overflowed."""
        grown = (self.good_steps + 1 >= self.growth_interval) & ~overflow
        self.value = torch.where(overflow, self.value / 2, torch.where(grown, self.value * 2, self.value))
        self.good_steps = torch.where(overflow | grown, 0, self.good_steps + 1)
        self.skipped = self.skipped + overflow

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": float(self.value), "good_steps": int(self.good_steps), "skipped": int(self.skipped)}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's state."""
        for name in ("value", "good_steps", "skipped"):
            getattr(self, name).fill_(state[name])
