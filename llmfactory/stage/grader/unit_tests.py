"""Tests of the program that an answer holds (Chen et al. 2021)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent
from typing import Any

from llmfactory.stage.grader.grader import Answer, Grade, Grader, NoGrade
from llmfactory.stage.grader.judging_spec import UnitTests
from llmfactory.stage.grader.sandbox import Limits, SandboxBroken, run

BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
OPEN = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n", re.MULTILINE | re.IGNORECASE)
MIB = 1 << 20


def program_in(text: str) -> str:
    """The last block between ``` marks, one that is not closed among them, or the whole text where there are no marks."""
    blocks = list(BLOCK.finditer(text))
    rest = text[blocks[-1].end() :] if blocks else text
    if (begin := OPEN.search(rest)) is not None:
        return rest[begin.end() :]
    return blocks[-1][1] if blocks else text


def programs(answer: Answer, tests: Any) -> list[str]:
    """One for each test: what comes before the answer, the answer, what comes before the tests, the test."""
    begin, setup = str(answer.record.get("begin") or ""), str(answer.record.get("setup") or "")
    found = program_in(answer.text)
    wanted = tests if isinstance(tests, list) else [tests]
    if begin:  # the answer goes on with it, in the midst of a function, or writes it anew behind it
        whole = begin + ("" if begin[-1].isspace() else "\n") + found
    else:
        whole = dedent(found).lstrip()
    return [f"{whole}\n\n{setup}\n\n{test}\n" for test in wanted]


class UnitTestsGrader(Grader):
    at_once = None
    keeps_time = True

    def __init__(self, spec: UnitTests) -> None:
        self.spec = spec
        sizes = {"memory_bytes": spec.memory_mb * MIB, "processes": spec.processes, "file_bytes": spec.file_mb * MIB}
        self.limits = Limits(cpu_s=spec.cpu_seconds, wall_s=spec.seconds, **sizes)
        self.workers = spec.workers or len(os.sched_getaffinity(0))

    def grade(self, answers: Sequence[Answer]) -> list[Grade]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, answers))

    def _one(self, answer: Answer) -> Grade:
        wanted = programs(answer, answer.record[self.spec.tests])
        if not wanted:
            return NoGrade("the record holds no test")
        try:
            passed = run(wanted, self.limits)
        except (SandboxBroken, OSError) as error:
            return NoGrade(f"the sandbox failed: {type(error).__name__}")
        return sum(passed) / len(passed)
