"""Leave the step out."""

from __future__ import annotations

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class SkipStep(Remedy):
    def decide(self, finding: Finding) -> Decision:
        return Decision(Action.skip, {})
