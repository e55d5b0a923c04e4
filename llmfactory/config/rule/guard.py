"""Rules about guards against divergence."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.guard.spec import None_, Rewind, WatchSpec
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.stage.spec import Grpo, RlSpec, TrainingSpec


def deepspeed_judges_its_own_steps(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, TrainingSpec) and isinstance(job.parallel, DeepSpeed) and not isinstance(job.guard, None_):
        reason = "DeepSpeed's engine clips and makes the step itself, before anybody could hold it back"
        yield Problem("guard", stem(type(job.guard)), reason, "guard=none")


def what_is_left_out_was_to_be_read(job: Job) -> Iterator[Problem]:
    if isinstance(job.guard, Rewind) and isinstance(job.stage, RlSpec):
        reason = "answers are written by the model as it stands, so there are no batches to go on without"
        yield Problem("guard", "rewind", reason, "guard=skip")


def losses_that_are_compared_mean_something(job: Job) -> Iterator[Problem]:
    """Advantages within a group add up to zero, so that the loss is rounding, whatever is learned; it has no usual size."""
    if isinstance(job.stage, Grpo) and isinstance(job.guard, WatchSpec) and job.guard.loss_z is not None:
        reason = (
            "the loss of stage=grpo is zero but for rounding and its penalty, so that it says nothing of a step; gradients do"
        )
        yield Problem("guard.loss_z", job.guard.loss_z, reason, "guard.loss_z=null")


def a_rewind_finds_a_checkpoint(job: Job) -> Iterator[Problem]:
    guard, trainer = job.guard, job.trainer
    if not isinstance(guard, Rewind) or not isinstance(job.stage, TrainingSpec) or isinstance(job.stage, RlSpec):
        return
    if trainer.save_every is None:
        reason = "guard=rewind goes back to a checkpoint, and none is written before the end"
        yield Problem("trainer.save_every", None, reason, f"trainer.save_every={guard.back}")
    elif (trainer.keep_last - 1) * trainer.save_every < guard.back:
        kept = f"of the last {trainer.keep_last} checkpoints, {trainer.save_every} steps apart,"
        reason = f"{kept} none may be guard.back={guard.back} steps old when a spike is found"
        yield Problem(
            "trainer.keep_last", trainer.keep_last, reason, f"trainer.keep_last={-(-guard.back // trainer.save_every) + 1}"
        )
