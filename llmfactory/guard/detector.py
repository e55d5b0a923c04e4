"""Which steps stand out from those before them.

z = (value - center) / unit, of the loss and of the gradient norm, over a window of the last W steps that reached the weights. With
the median, unit = 1.4826 median |x - center|, the standard deviation where values are normal (Hampel 1974); half of the window may be
spikes before it gives way. Of an even number of values, the median is the lower one of the two in the middle.

Everything is a tensor on the device, and nothing is read back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmfactory.guard.spec import Statistic, WatchSpec

NORMAL = 1.4826
"""Of a normal distribution, the standard deviation by the median distance from the median."""


class Detector:
    """`past` [2, W]: loss and gradient norm of the window's steps, NaN where there has been none yet; `count` of steps taken so far."""

    def __init__(self, spec: WatchSpec, device: str | torch.device = "cpu") -> None:
        self.spec = spec
        self.past_2W = torch.full((2, spec.window), torch.nan, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        limits = [torch.inf if limit is None else limit for limit in (spec.loss_z, spec.norm_z)]
        self.limit_2 = torch.tensor(limits, dtype=torch.float64, device=device)

    def judge(self, value_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(whether it is a spike, z [2], center [2]) of a loss and a gradient norm [2]."""
        center_2, unit_2 = self._center_and_unit()
        unit_2 = torch.maximum(unit_2, self.spec.floor * center_2.abs())
        # Nothing but zeros in the window (answers that are all judged alike have no gradient) is nothing to compare with.
        z_2 = torch.where((unit_2 == 0) & (center_2 == 0) & value_2.isfinite(), 0.0, (value_2 - center_2) / unit_2)
        return (z_2 > self.limit_2).any() & (self.count >= self.spec.least), z_2, center_2

    def take(self, value_2: Tensor, taken: Tensor) -> None:
        """Put a step into the window, if `taken`."""
        place_21 = (self.count % self.spec.window).expand(2, 1)
        value_21 = torch.where(taken, value_2[:, None], self.past_2W.gather(1, place_21))
        self.past_2W.scatter_(1, place_21, value_21)
        self.count += taken

    def _center_and_unit(self) -> tuple[Tensor, Tensor]:
        if self.spec.statistic is Statistic.mean:
            there = ~self.past_2W.isnan()
            count_2 = there.sum(1)
            center_2 = self.past_2W.nansum(1) / count_2
            off_2W = torch.where(there, self.past_2W - center_2[:, None], 0.0)
            return center_2, (off_2W.square().sum(1) / count_2).sqrt()
        center_2 = self._median(self.past_2W)
        return center_2, NORMAL * self._median((self.past_2W - center_2[:, None]).abs())

    def _median(self, value_2W: Tensor) -> Tensor:
        """Sorting puts NaN last. (`torch.median` has no deterministic kernel on GPUs.)"""
        there = self.count.clamp(max=self.spec.window)
        middle = ((there - 1) // 2).clamp(min=0).expand(2, 1)
        return value_2W.sort(1).values.gather(1, middle)[:, 0]

    def state(self) -> list[list[float]]:
        """For a checkpoint: losses and norms of the window, the oldest first."""
        count, W = int(self.count), self.spec.window
        oldest = count % W if count > W else 0
        values: list[list[float]] = self.past_2W.roll(-oldest, 1)[:, : min(count, W)].tolist()
        return values

    def load(self, state: Any) -> None:
        """Go on from a checkpoint's state; of a longer window, its end."""
        kept = torch.tensor(state, dtype=torch.float64).reshape(2, -1)[:, -self.spec.window :]
        self.past_2W.fill_(torch.nan)
        self.past_2W[:, : kept.shape[1]] = kept.to(self.past_2W.device)
        self.count.fill_(kept.shape[1])
