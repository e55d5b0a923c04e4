"""The measure of stages that learn from rewards: what held-out answers get. Its loss is minus the mean reward, so that lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from llmfactory.objective.objective import Objective, Outputs

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class Rewarded(Objective):
    """A name for the figures: answers have been written and judged by the time that it is asked."""

    terms = ("loss",)
    watched = ("reward", "ungraded")
    unit = "minus the mean reward"

    @staticmethod
    def sums(rewards: Sequence[float], ungraded: int) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and counts by name; `ungraded`: grades that there are none of, which is told as it is."""
        total, count = math.fsum(rewards), float(len(rewards))
        return {"loss": -total, "reward": total, "ungraded": float(ungraded)}, {"loss": count, "reward": count, "ungraded": 1.0}

    def __call__(self, outputs: Outputs, batch: Batch) -> NoReturn:
        raise TypeError("rewards are no function of a batch")

    def denominators(self, batch: Batch) -> NoReturn:
        raise TypeError("rewards are no function of a batch")
