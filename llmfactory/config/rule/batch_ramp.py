"""Rules about batches that grow in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.parallel.spec import Mesh
from llmfactory.run.batch_ramp.spec import Linear, Staged
from llmfactory.run.batch_ramp.spec import None_ as NoRamp
from llmfactory.stage.spec import Reweight, RlSpec, TrainingSpec

NO_RAMP = "trainer/batch_ramp=none"


def a_growing_batch_has_rows_for_all(job: Job) -> Iterator[Problem]:
    """Steps need not come out even: a process with a row less repeats a micro-batch that counts nothing."""
    if isinstance(job.trainer.batch_ramp, NoRamp) or not isinstance(job.stage, TrainingSpec):
        return
    degrees = job.parallel.degrees_for(job.launch.world())
    ranks = math.prod(size for name, size in degrees.items() if name.startswith("dp_"))
    ramp = job.trainer.batch_ramp
    least = ramp.least(job.trainer.batch_size)
    if least < ranks <= job.trainer.batch_size:
        reason = f"its smallest step has {least} row{'s' if least > 1 else ''}, to be shared out among {ranks} processes"
        if isinstance(ramp, Linear) and ranks < job.trainer.batch_size:
            yield Problem("trainer.batch_ramp.start", ramp.start, reason, f"trainer.batch_ramp.start={ranks}")
        elif isinstance(ramp, Staged):
            rows = "[" + ",".join(str(max(ranks, rows)) for rows in ramp.rows) + "]"
            yield Problem("trainer.batch_ramp.rows", ramp.rows, reason, f"trainer.batch_ramp.rows={rows}")
        else:
            yield Problem("trainer.batch_ramp", stem(type(ramp)), reason, NO_RAMP)


def ramps_are_of_rows_of_data(job: Job) -> Iterator[Problem]:
    if isinstance(job.trainer.batch_ramp, NoRamp):
        return
    reason = None
    if isinstance(job.stage, RlSpec):
        reason = "an iteration's answers are shared out evenly among its steps"
    elif isinstance(job.stage, Reweight):
        reason = "the two small models that are compared see batches of one size"
    elif isinstance(job.stage, TrainingSpec) and job.model.graph == "counts":
        reason = "this model counts all rows in one pass"
    elif isinstance(job.parallel, Mesh) and job.parallel.pp > 1:
        reason = "a pipeline is made for one number of micro-batches of one size"
    if reason is not None:
        yield Problem("trainer.batch_ramp", stem(type(job.trainer.batch_ramp)), reason, NO_RAMP)
