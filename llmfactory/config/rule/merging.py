"""Rules about models that are made of several."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.stage.spec import Merge


def merging_takes_one_process(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, Merge) and job.launch.world() > 1:
        reason = "weights are merged tensor by tensor in one process, others would have nothing to do"
        yield Problem("launch", stem(type(job.launch)), reason, "launch=single parallel=single")
