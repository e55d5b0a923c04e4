"""Leave the step out and learn more slowly for a while."""

from __future__ import annotations

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class LowerRate(Remedy):
    def __init__(self, factor: float, steps: int) -> None:
        self.factor, self.steps = factor, steps

    def decide(self, finding: Finding) -> Decision:
        return Decision(Action.lower_lr, {"factor": self.factor, "until": finding.step + self.steps})
