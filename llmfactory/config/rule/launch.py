"""Rules about how processes are started."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.parallel.spec import Backend


def mpi_starts_its_own_processes(job: Job) -> Iterator[Problem]:
    if job.parallel.mesh().backend is Backend.mpi:
        reason = "torch's wheels are built without MPI, and MPI numbers only processes that its own mpirun started, which no launch does"
        yield Problem("parallel.backend", "mpi", reason, "parallel.backend=auto")
