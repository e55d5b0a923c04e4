"""Go back to a checkpoint and leave out the batches around the spike.

What made the weights go wrong stood in batches before the one that shows it, and the same batches with other weights do no harm
(Chowdhery et al. 2022, section 5.1); so a whole stretch is left out, and never again looked at in this run.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.guard.remedy import Action, Decision, Finding, Remedy


class RewindRun(Remedy):
    def __init__(self, back: int, before: int, after: int) -> None:
        self.back, self.before, self.after = back, before, after

    def decide(self, finding: Finding) -> Decision:
        return Decision(Action.rewind, {})

    def target(self, step: int, saved: Sequence[int]) -> int:
        """The step to go back to from one (from 1) that went wrong: of those of checkpoints, ascending, or 0, the beginning."""
        earlier = [one for one in saved if one < step]
        old = [one for one in earlier if one <= step - self.back]
        return old[-1] if old else next(iter(earlier), 0)

    def left_out(self, step: int, target: int) -> tuple[int, int]:
        """[first, last) of the steps (from 0) whose batches are left out."""
        return max(target, step - 1 - self.before), step + self.after
