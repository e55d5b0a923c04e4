"""Clip harder: a spike's gradients are scaled down to the norm that steps of the window had."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class ClipHarder(Remedy):
    takes: ClassVar[bool] = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def most_norm(self, norm_center: Tensor) -> Tensor:
        return self.factor * norm_center

    def decide(self, finding: Finding) -> Decision:
        if not finding.finite:
            return Decision(Action.skip, {})
        return Decision(Action.clip, {"max_norm": self.factor * finding.norm_center})
