"""Rules about optimizers and what each parameter learns at."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.model.spec import EmbeddingModel, KneserNey, NeuralNgram
from llmfactory.optim.average.spec import None_ as NoAverage
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import ScheduleFree
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.stage.spec import TrainingSpec


def deepspeed_steps_number_by_number(job: Job) -> Iterator[Problem]:
    """Its engine hands the optimizer pieces of many weights in one row, and clips for itself."""
    if not isinstance(job.parallel, DeepSpeed) or not isinstance(job.stage, TrainingSpec):
        return
    optim, ours = job.optim, f"parallel=zero{job.parallel.stage}"
    if not optim.elementwise:
        reason = f"DeepSpeed's engine cuts weights at any place, and {stem(type(optim))} looks at whole rows or matrices"
        yield Problem("optim", stem(type(optim)), reason, ours)
    elif optim.clip_value is not None:
        reason = "DeepSpeed's engine clips gradients for itself, by their norm only"
        yield Problem("optim.clip_value", optim.clip_value, reason, "optim.clip_value=null")
    else:
        for name in ("layer_decay", "lr_factors", "weight_decays"):
            if getattr(optim, name):
                reason = (
                    "nothing shows that DeepSpeed's engine makes the same steps with groups of parameters; our own layouts do"
                )
                yield Problem(f"optim.{name}", getattr(optim, name), reason, ours)


def parts_are_measured_before_the_step(job: Job) -> Iterator[Problem]:
    """When all gradients are there, and where they are."""
    if not job.trainer.log_parts or not isinstance(job.stage, TrainingSpec):
        return
    if job.trainer.in_backward:
        reason = "with trainer.in_backward=true a gradient is gone before the next one comes"
    elif isinstance(job.parallel, DeepSpeed):
        reason = "DeepSpeed's engine keeps gradients to itself"
    else:
        return
    yield Problem("trainer.log_parts", True, reason, "trainer.log_parts=false")


def layers_learn_at_different_rates(job: Job) -> Iterator[Problem]:
    if job.optim.layer_decay is not None and isinstance(job.model, (EmbeddingModel, KneserNey, NeuralNgram)):
        reason = f"{stem(type(job.model))} has no layers"
        yield Problem("optim.layer_decay", job.optim.layer_decay, reason, "optim.layer_decay=null")


def schedule_free_has_no_schedule(job: Job) -> Iterator[Problem]:
    """Its mean is what a schedule is for, and it is the only one."""
    if not isinstance(job.optim, ScheduleFree) or not isinstance(job.stage, TrainingSpec):
        return
    if not isinstance(job.optim.schedule, Constant):
        reason = "schedule_free averages weights in the place of a decay; it takes a constant rate, after a warm-up"
        yield Problem("optim.schedule", stem(type(job.optim.schedule)), reason, "optim/schedule=constant")
    elif not isinstance(job.optim.average, NoAverage):
        reason = "schedule_free hands on a mean of its own"
        yield Problem("optim.average", stem(type(job.optim.average)), reason, "optim/average=none")
