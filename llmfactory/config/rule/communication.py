"""Rules about measuring how processes talk."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.spec import Axis, BenchComm


def talking_takes_two(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, BenchComm) and job.launch.world() == 1:
        reason = "how fast processes talk is measured between several, and launch starts one"
        yield Problem("stage", "bench_comm", reason, "launch=local launch.processes=2 parallel=ddp stage.axis=world")


def an_axis_has_several_processes(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, BenchComm) or job.stage.axis in (Axis.world, Axis.all) or job.launch.world() == 1:
        return
    degrees = job.parallel.degrees_for(job.launch.world())
    if isinstance(job.parallel, Mesh):
        degrees = {**degrees, "ep": job.parallel.ep}
    if degrees.get(job.stage.axis.name, 1) == 1:
        longer = ", ".join(name for name, size in degrees.items() if size > 1)
        reason = f"each group along that axis has one process; axes of several are {longer}"
        yield Problem("stage.axis", job.stage.axis.name, reason, "stage.axis=world")
