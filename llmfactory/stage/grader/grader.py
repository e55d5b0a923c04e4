"""The interface of graders, and several at once: the reward of an answer is the weighted sum of its grades.

What a grader does wrong stays with it: an error, an endless loop, a number that is none. The answer then has no grade from it, which
is counted with the reason, and `failed_reward` stands in its place; so every reward is a finite number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import UserError
from llmfactory.stage.grader.limit import OutOfTime, time_limit

if TYPE_CHECKING:
    import torch

    from llmfactory.config.spec import Job
    from llmfactory.stage.grader.base_spec import GraderSpec


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote."""

    prompt: list[int]
    """Tokens that it was given."""
    text_prompt: str
    tokens: list[int]
    """Tokens that it wrote, without the one that ends an answer."""
    text: str
    """What they say."""
    ended: bool
    """The model ended the answer itself; false: it was cut off at the most tokens allowed."""
    record: dict[str, Any]
    """What is known of the prompt: `answer`, `tests`, ..."""
    messages: Sequence[dict[str, Any]] = ()
    """The conversation that was to be answered; empty: `text_prompt` is the question."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a grader works."""

    job: Job
    device: torch.device
    """Of this process, for graders that run a model."""
    max_tokens: int
    """Tokens that an answer has at most."""


@dataclass(frozen=True, slots=True)
class NoGrade:
    """An answer that could not be graded."""

    reason: str


Grade = float | NoGrade | None
"""None: no grade, for no particular reason."""


class Grader(ABC):
    at_once: ClassVar[int | None] = 1
    """Answers that `grade` is given at once; None: all that there are. An error costs all of them their grade."""

    keeps_time: ClassVar[bool] = False
    """It keeps the time limit itself, so that one slow answer costs no other its grade."""

    @abstractmethod
    def grade(self, answers: Sequence[Answer]) -> Sequence[Grade]:
        """One grade for each answer. It may raise; what it raises is counted."""

    def close(self) -> None:
        """Ends what it has started: processes, files."""
        return


@dataclass(frozen=True, slots=True)
class Scored:
    """What several graders make of N answers."""

    rewards: list[float]
    """[N], finite."""
    by_name: dict[str, list[float | None]]
    """Of each grader the grades [N], before weighting; None: it gave none."""
    failures: dict[str, int]
    """How many answers have no grade, by "<grader>: <reason>"."""

    def means(self) -> dict[str, float]:
        """Of each grader the mean over those that it graded; those that graded none are left out."""
        graded = {name: [grade for grade in grades if grade is not None] for name, grades in self.by_name.items()}
        return {name: sum(grades) / len(grades) for name, grades in graded.items() if grades}


@dataclass(slots=True)
class Graders:
    """Several graders by name."""

    specs: Mapping[str, GraderSpec]
    graders: Mapping[str, Grader]
    failures: Counter[str] = field(default_factory=Counter)
    """Over all answers so far."""

    @classmethod
    def of(cls, specs: Mapping[str, GraderSpec], job: Job, device: torch.device, max_tokens: int) -> Graders:
        """`max_tokens`: tokens that an answer has at most."""
        setting = Setting(job, device, max_tokens)
        return cls(specs, {name: spec.build(setting) for name, spec in specs.items()})

    def check(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Every record has what the graders compare answers with. Raises UserError that names the first that has not."""
        needed = [(name, wanted) for name, spec in self.specs.items() for wanted in spec.needs()]
        for number, record in enumerate(records):
            for name, wanted in needed:
                if record.get(wanted) is None:
                    raise UserError(
                        f"the grader {name} compares answers with the field {wanted!r} of the prompt's record, and that of prompt {number} "
                        f"holds {', '.join(sorted(record)) or 'nothing'}. Name the field in your file with data.form.fields, or leave "
                        "the grader out"
                    )

    def score(self, answers: Sequence[Answer]) -> Scored:
        rewards = [0.0] * len(answers)
        by_name: dict[str, list[float | None]] = {}
        failures: Counter[str] = Counter()
        for name, spec in self.specs.items():
            found = graded(self.graders[name], answers, spec.seconds)
            failures.update(f"{name}: {one.reason}" for one in found if isinstance(one, NoGrade))
            by_name[name] = [None if isinstance(one, NoGrade) else one for one in found]
            for number, grade in enumerate(by_name[name]):
                rewards[number] += spec.weight * (spec.failed_reward if grade is None else grade)
        self.failures.update(failures)
        return Scored(rewards, by_name, dict(failures))

    def close(self) -> None:
        for grader in self.graders.values():
            grader.close()


def graded(grader: Grader, answers: Sequence[Answer], seconds: float) -> list[float | NoGrade]:
    """A finite number or a reason for each answer, whatever the grader does."""
    size = grader.at_once or max(1, len(answers))
    parts = [answers[start : start + size] for start in range(0, len(answers), size)]
    return [one for part in parts for one in _guarded(grader, part, seconds)]


def _guarded(grader: Grader, answers: Sequence[Answer], seconds: float) -> list[float | NoGrade]:
    try:
        with nullcontext() if grader.keeps_time else time_limit(seconds * len(answers)):
            found = list(grader.grade(answers))
    except OutOfTime:
        return [NoGrade(f"took longer than {seconds:g} s an answer")] * len(answers)
    except UserError:  # a file or a model that is wrong is so for all answers
        raise
    except Exception as error:
        return [NoGrade(f"raised {type(error).__name__}")] * len(answers)
    if len(found) != len(answers):
        return [NoGrade("gave another number of grades than there are answers")] * len(answers)
    return [_finite(one) for one in found]


def _finite(grade: Any) -> float | NoGrade:
    if isinstance(grade, NoGrade):
        return grade
    if grade is None:
        return NoGrade("gave none")
    try:
        number = float(grade)
    except (TypeError, ValueError, OverflowError):
        return NoGrade("gave something that is no number")
    return number if isfinite(number) else NoGrade("gave a number that is not finite")
