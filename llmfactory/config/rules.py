"""Rules over several parts of a job."""

from __future__ import annotations

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem

RULES: tuple = ()


def check(job: Job) -> list[Problem]:
    return [problem for rule in RULES for problem in rule(job)]
