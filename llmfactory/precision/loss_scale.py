"""Dynamic loss scaling (Micikevicius et al. 2018, section 3.2).

float16 has no numbers between 0 and 6e-8, where many gradients lie, so the loss is multiplied by a large number before the
backward pass and the gradients are divided by it after. When they overflow, the step is left out; at the `backoff_interval`-th
overflow since the scale last changed it is multiplied by `backoff`, after `growth_interval` steps in a row without overflow by `growth`.
(Megatron-LM and DeepSpeed call the first interval hysteresis; torch's GradScaler always has 1.)

Everything is a tensor on the device and nothing is read back, so that a GPU is never waited for. Whether the gradients
overflowed is decided from the global gradient norm, so all processes decide alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.precision.spec import Fp16Mixed

SMALLEST = 2.0**-16
"""A scale below this says that the gradients are non-finite for another reason than overflow."""


class LossScale:
    """The scale, the numbers of good steps and of overflows since it last changed, and how many steps were left out so far."""

    def __init__(self, spec: Fp16Mixed, device: str | torch.device = "cpu") -> None:
        self.spec = spec
        self.value = torch.tensor(spec.init_scale, dtype=torch.float32, device=device)
        self.good_steps = torch.tensor(0, dtype=torch.int64, device=device)
        self.overflows = torch.tensor(0, dtype=torch.int64, device=device)
        self.skipped = torch.tensor(0, dtype=torch.int64, device=device)

    def update(self, overflow: Tensor) -> None:
        """After a step: a bool scalar, whether its gradients overflowed."""
        self.good_steps = torch.where(overflow, 0, self.good_steps + 1)
        self.overflows = self.overflows + overflow
        grown = self.good_steps >= self.spec.growth_interval
        backed = overflow & (self.overflows >= self.spec.backoff_interval)
        factor = torch.where(grown, self.spec.growth, torch.where(backed, self.spec.backoff, 1.0))
        self.value = self.value * factor
        self.good_steps = torch.where(grown, 0, self.good_steps)
        self.overflows = torch.where(grown | backed, 0, self.overflows)
        self.skipped = self.skipped + overflow

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        counts = {name: int(getattr(self, name)) for name in ("good_steps", "overflows", "skipped")}
        return {"value": float(self.value), **counts}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's state; older ones, which backed off at each overflow, have no number of them."""
        for name in ("value", "good_steps", "overflows", "skipped"):
            getattr(self, name).fill_(state.get(name, 0))
