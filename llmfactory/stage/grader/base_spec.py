"""What every grader's spec is; the pages of the catalogue (spec.py, <theme>_spec.py) stand on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above

if TYPE_CHECKING:
    from llmfactory.stage.grader.grader import Grader, Setting


@dataclass(kw_only=True, slots=True)
class GraderSpec(Spec):
    """Base of the graders."""

    passes: ClassVar[bool] = False
    """A grade of 1 says that an answer is right, and others that it is not."""
    weight: float = 1.0
    """The reward of an answer is the sum of its grades, each times its grader's weight."""
    failed_reward: float = 0.0
    """The grade where there is none: the grader raised an error, ran out of time or gave no finite number; these are counted."""
    seconds: float = 10.0
    """Time limit for each answer; graders that look at several at once have as many times as long."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "seconds", repair=10.0)
        for name in ("weight", "failed_reward"):
            if not isfinite(getattr(self, name)):
                yield Problem(name, getattr(self, name), "must be a finite number", f"{name}=1.0")

    def needs(self) -> tuple[str, ...]:
        """Names of fields of a record without which it has nothing to compare an answer with."""
        return ()

    def build(self, setting: Setting) -> Grader:
        raise TypeError(f"{type(self).__name__} is a base: pick options of stage/grader")
