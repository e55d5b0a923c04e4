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


def a_growing_batch_fills_the_pipeline(job: Job) -> Iterator[Problem]:
    """From its first step on. Of the full batch, `micro_batches_fill_the_pipeline` says it."""
    layout, ramp, batch = job.parallel, job.trainer.batch_ramp, job.trainer.batch_size
    if isinstance(ramp, NoRamp) or not isinstance(layout, Mesh) or layout.pp == 1 or not isinstance(job.stage, TrainingSpec):
        return
    ranks, size = layout.data_degree(job.launch.world()), job.trainer.micro_batch_size or batch

    def fills(rows: int) -> bool:
        return layout.fills_pipeline(-(-rows // (ranks * size)))

    short = [rows for rows in job.trainer.sizes(job.data.seq_len).all if not fills(rows)]
    if not short or not fills(batch) or short[0] < ranks:
        return
    whole = ranks * size * layout.pp

    def up(rows: int) -> int:
        return -(-rows // whole) * whole

    reason = f"steps of {short[0]} rows do not fill the schedule {layout.schedule.name} of {layout.pp} processes (parallel.pp)"
    if whole >= batch:
        yield Problem("trainer.batch_ramp", stem(type(ramp)), reason, NO_RAMP)
    elif isinstance(ramp, Linear):
        start = up(ramp.start)
        repair = f"trainer.batch_ramp.start={start}"
        if ramp.increment is not None and not layout.fills_pipeline(layout.pp + 1):  # it goes through micro-batches in rounds
            repair += f" trainer.batch_ramp.increment={up(ramp.increment)}"
        yield Problem("trainer.batch_ramp.start", ramp.start, reason, repair if start < batch else NO_RAMP)
    elif isinstance(ramp, Staged):
        rows = "[" + ",".join(str(min(batch, up(rows))) for rows in ramp.rows) + "]"
        yield Problem("trainer.batch_ramp.rows", ramp.rows, reason, f"trainer.batch_ramp.rows={rows}")


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
    if reason is not None:
        yield Problem("trainer.batch_ramp", stem(type(job.trainer.batch_ramp)), reason, NO_RAMP)
