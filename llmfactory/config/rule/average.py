"""Rules about averages of weights."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.optim.average.spec import Lawa, Swa
from llmfactory.optim.average.spec import None_ as NoAverage
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.stage.spec import Examine, Merge, TrainingSpec


def averages_are_taken_of_our_own_weights(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec) or isinstance(job.optim.average, NoAverage):
        return
    if isinstance(job.parallel, DeepSpeed):
        reason = "DeepSpeed's engine keeps the weights that are trained where an average does not reach them"
        yield Problem("optim.average", stem(type(job.optim.average)), reason, "optim/average=none")


def an_average_begins_within_the_run(job: Job) -> Iterator[Problem]:
    average, steps = job.optim.average, job.trainer.max_steps
    if not isinstance(job.stage, TrainingSpec) or average.first_step(steps) <= steps:
        return
    reason = f"the run ends at trainer.max_steps={steps}, before any weights are taken"
    if isinstance(average, Lawa):
        yield Problem("optim.average.every", average.every, reason, f"optim.average.every={max(1, steps // (2 * average.last))}")
    elif isinstance(average, Swa):
        yield Problem("optim.average.start_step", average.start_step, reason, f"optim.average.start_step={3 * steps // 4}")


def who_compares_models_takes_averages(job: Job) -> Iterator[Problem]:
    """One key cannot choose for several models."""
    if job.init_trained and isinstance(job.stage, (Merge, Examine)):
        reason = f"stage={stem(type(job.stage))} takes of every model the weights that its run handed on"
        yield Problem("init_trained", True, reason, "init_trained=false")
