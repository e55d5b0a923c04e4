"""Catalogue of graders that run something: tests of programs, a trained model, a function of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import MISSING, above, at_least
from llmfactory.stage.grader.base_spec import GraderSpec

if TYPE_CHECKING:
    from llmfactory.stage.grader.grader import Grader, Setting


@dataclass(kw_only=True, slots=True)
class UnitTests(GraderSpec):
    """The share of tests that the Python program in an answer passes, each in a process of its own that is confined: limits of time,
    memory, processes and files, no network, nothing written outside a folder that is thrown away."""

    passes: ClassVar[bool] = True
    tests: str = "tests"
    """The field of the prompt's record with the tests, a list of programs that raise an error where the answer is wrong. Beside it,
    `begin` stands before the answer, and `setup` before each test."""
    cpu_seconds: float = 5.0
    """CPU time of each test."""
    memory_mb: int = 512
    """Address space of each process, in MiB."""
    processes: int = 16
    """Processes and threads of a test at most."""
    file_mb: int = 16
    """Size of each file that it writes, in MiB."""
    workers: int | None = None
    """Answers that are tested at once; None: as many as this process may use cores."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from above(self, 0.0, "cpu_seconds", repair=5.0)
        yield from at_least(self, 64, "memory_mb")
        yield from at_least(self, 1, "processes", "file_mb", "workers")

    def needs(self) -> tuple[str, ...]:
        return (self.tests,)

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.unit_tests import UnitTestsGrader

        return UnitTestsGrader(self)


@dataclass(kw_only=True, slots=True)
class Model(GraderSpec):
    """What a reward model (stage=reward) says of the answer to its prompt."""

    init: str
    """The run of the reward model."""
    batch_tokens: int = 8192
    """Tokens that go through it at once, padding among them. Changes memory and speed, not the grades."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from at_least(self, 1, "batch_tokens")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.model import ModelGrader

        return ModelGrader(self, setting.device)


@dataclass(kw_only=True, slots=True)
class Function(GraderSpec):
    """A function of your own in a package that is a plugin of the job, in a process of its own: f(answer, prompt, record) -> a number,
    or None for no grade; answer and prompt are texts, record is the object of the prompt's file."""

    call: str
    """Its place, `my_package.rewards:score`. The package is named by plugins=[my_package], or is an installed plugin."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        module, colon, name = self.call.partition(":")
        if self.call != MISSING and not (colon and name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
            yield Problem("call", self.call, "is the place of a function, a module and a name", "call=my_package.rewards:score")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.function import FunctionGrader

        return FunctionGrader(self, setting.job.plugins)
