"""End the run."""

from __future__ import annotations

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class StopRun(Remedy):
    def decide(self, finding: Finding) -> Decision:
        return Decision(Action.stop, {})
