"""Rules of stage=profile."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.stage.spec import Profile, RlSpec, TrainingSpec


def what_is_profiled_is_trained(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Profile):
        return
    of = job.stage.of
    if not isinstance(of, TrainingSpec):
        yield Problem("stage.of", stem(type(of)), "has no training steps to profile", "stage.of=pretrain")
    elif job.model.graph == "counts":
        reason = "this model is counted in one pass: there are no steps to profile"
        yield Problem("stage", "profile", reason, "stage=pretrain")


def a_profile_ends_within_the_run(job: Job) -> Iterator[Problem]:
    """Its steps are the run's first, under the run's schedule."""
    if isinstance(job.stage, Profile) and job.stage.steps > job.trainer.max_steps:
        reason = f"the profile takes {job.stage.steps} steps (stage.warm_up, stage.measured, one traced, one with stacks)"
        yield Problem("trainer.max_steps", job.trainer.max_steps, reason, f"trainer.max_steps={job.stage.steps}")


def a_profile_covers_whole_iterations(job: Job) -> Iterator[Problem]:
    """Answers are written in the first step of an iteration; a mean over other steps would have more or less of that."""
    stage = job.stage
    if not isinstance(stage, Profile) or not isinstance(stage.of, RlSpec):
        return
    each = max(1, stage.of.steps(job.trainer.batch_size))
    if stage.measured % each:
        reason = (
            f"answers are written every {each} steps (stage.epochs, stage.answers), and steps are timed with their share of that"
        )
        yield Problem("stage.measured", stage.measured, reason, f"stage.measured={-(-stage.measured // each) * each}")


def deepspeed_makes_its_own_steps(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, Profile) and isinstance(job.parallel, DeepSpeed):
        reason = "its engine makes forward, backward and optimizer steps that cannot be told apart from outside"
        yield Problem("parallel", stem(type(job.parallel)), reason, "parallel=zero3")
