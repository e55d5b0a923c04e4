"""Only say it."""

from __future__ import annotations

from typing import ClassVar

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class ReportOnly(Remedy):
    takes: ClassVar[bool] = True

    def decide(self, finding: Finding) -> Decision:
        return Decision(Action.report if finding.finite else Action.stop, {})
