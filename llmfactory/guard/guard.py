"""The guard of a run: judges each step on the device, keeps what came of it until somebody asks, and remembers what was decided.

The verdict whether a step may reach the weights is a tensor, so that a GPU is never waited for. What else is done (writing down,
another learning rate, going back, ending the run) happens when `findings` is called: after each step on the CPU, where that costs
nothing; on a GPU whenever metrics are read anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmfactory.guard.detector import Detector
from llmfactory.guard.remedy import Decision, Finding, Remedy
from llmfactory.guard.spec import WatchSpec


@dataclass(slots=True)
class Slower:
    """A lower learning rate: of the steps [start, stop), from 0."""

    start: int
    stop: int
    factor: float


@dataclass(slots=True)
class Guard:
    spec: WatchSpec
    remedy: Remedy
    detector: Detector
    decisions: int = 0
    """Made since the run began, those before a rewind included."""
    slower: list[Slower] = field(default_factory=list)
    _unread: list[tuple[int, Tensor]] = field(default_factory=list)

    def judge(self, step: int, loss: Tensor, norm: Tensor, broken: Tensor, overflow: Tensor) -> tuple[Tensor, Tensor | None]:
        """(whether the step must not reach the weights, its largest gradient norm or None), of the step number `step`, from 1.

        `broken`: it is not finite; `overflow`: only because the loss scale is too large still, which is nobody's fault.
        """
        value_2 = torch.stack([loss.detach().double(), norm.detach().double()])
        stands_out, z_2, center_2 = self.detector.judge(value_2)
        spike = stands_out & ~broken & ~overflow
        withheld = broken if self.remedy.takes else broken | spike
        self.detector.take(value_2, ~(withheld | overflow))
        self._unread.append((step, torch.cat([torch.stack([broken, spike]).double(), value_2, z_2, center_2])))
        most = self.remedy.most_norm(center_2[1])
        return withheld, None if most is None else torch.where(spike, most, torch.inf)

    def findings(self) -> list[Finding]:
        """The steps that went wrong since it was called before. Waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        rows = torch.stack([row for _, row in unread]).tolist()
        return [
            Finding(step, not broken, *values)
            for (step, _), (broken, spike, *values) in zip(unread, rows, strict=True)
            if broken or spike
        ]

    def decide(self, finding: Finding) -> Decision:
        return self.remedy.decide(finding)

    def slow_down(self, finding: Finding, decision: Decision, now: int) -> None:
        """From the step `now` (from 0) on, as the decision has it."""
        self.slower.append(Slower(now, decision.details["until"], decision.details["factor"]))

    def lr_factor(self, step: int) -> float:
        """What the learning rate of a step, from 0, is multiplied by."""
        factor = 1.0
        for one in self.slower:
            factor *= one.factor if one.start <= step < one.stop else 1.0
        return factor

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "window": self.detector.state(),
            "decisions": self.decisions,
            "slower": [[one.start, one.stop, one.factor] for one in self.slower],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.detector.load(state["window"])
        self.decisions = state["decisions"]
        self.slower = [Slower(int(start), int(stop), factor) for start, stop, factor in state["slower"]]
