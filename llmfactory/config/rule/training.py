"""Rules about the course of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from llmfactory.config.probe import probe
from llmfactory.config.saved import CONFIG
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.spec import Labelled
from llmfactory.guard.spec import None_ as NoGuard
from llmfactory.objective.spec import BlankInfilling, Causal, PolicySpec, Prefix, Tilted
from llmfactory.optim.schedule.spec import DecaySpec, InverseSqrt, Wsd
from llmfactory.parallel.spec import Auto, Mesh
from llmfactory.stage.spec import Evaluate, RlSpec, TrainingSpec


def decay_reaches_the_end(job: Job) -> Iterator[Problem]:
    """A run that goes on with larger max_steps may: its folder is there already, and `run/resume.py` compares the two."""
    schedule, steps = job.optim.schedule, job.trainer.max_steps
    if not isinstance(job.stage, TrainingSpec) or not isinstance(schedule, DecaySpec) or schedule.horizon is None:
        return
    if schedule.horizon < steps and not schedule.goes_on and not _goes_on(job):
        reason = f"the learning rate would stay at its floor for the last {steps - schedule.horizon} of trainer.max_steps={steps}"
        yield Problem("optim.schedule.horizon", schedule.horizon, reason, f"optim.schedule.horizon={steps}")


def _goes_on(job: Job) -> bool:
    return job.name is not None and Path(job.output_dir, job.name, CONFIG).is_file()


def warmup_ends_before_the_run(job: Job) -> Iterator[Problem]:
    schedule, steps = job.optim.schedule, job.trainer.max_steps
    if isinstance(job.stage, TrainingSpec) and schedule.pinned_horizon() is None and schedule.warmup(steps) >= steps:
        reason = f"warm-up takes the whole run (trainer.max_steps={steps}), so the peak rate is never reached"
        if schedule.warmup_share is not None:
            yield Problem("optim.schedule.warmup_share", schedule.warmup_share, reason, "optim.schedule.warmup_share=0.1")
        else:
            yield Problem(
                "optim.schedule.warmup_steps", schedule.warmup_steps, reason, f"optim.schedule.warmup_steps={steps // 10}"
            )


def warmup_and_decay_leave_room(job: Job) -> Iterator[Problem]:
    schedule = job.optim.schedule
    if not isinstance(schedule, Wsd):
        return
    horizon, warmup = schedule.end(job.trainer.max_steps), schedule.warmup(job.trainer.max_steps)
    room = horizon - warmup
    if room > 0 and round(schedule.decay_share * horizon) > room:
        reason = f"the decay would start within the warm-up of {warmup} of {horizon} steps"
        fitting = math.floor(100 * room / horizon) / 100
        yield Problem("optim.schedule.decay_share", schedule.decay_share, reason, f"optim.schedule.decay_share={fitting}")


def inverse_sqrt_warms_up(job: Job) -> Iterator[Problem]:
    schedule = job.optim.schedule
    if isinstance(schedule, InverseSqrt) and schedule.warmup(job.trainer.max_steps) == 0:
        reason = "the rate is sqrt(warmup_steps / step): without a warm-up it has fallen to a tenth after 100 steps"
        yield Problem("optim.schedule.warmup_steps", 0, reason, "optim.schedule.warmup_steps=100")


def best_is_looked_for(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, TrainingSpec) and job.trainer.keep_best and job.trainer.eval_every is None:
        reason = "the best checkpoint is found by evaluations during training, and trainer.eval_every=null makes none"
        yield Problem("trainer.keep_best", True, reason, "trainer.keep_best=false")


def held_out_text_is_there(job: Job) -> Iterator[Problem]:
    looks = isinstance(job.stage, Evaluate) or (isinstance(job.stage, TrainingSpec) and job.trainer.eval_every is not None)
    other_files = isinstance(job.data, Labelled) and bool(job.data.held_out_files)
    if looks and job.data.held_out == 0 and not other_files:
        yield Problem("data.held_out", 0.0, "there would be no text to evaluate on", "data.held_out=0.05")


def sample_is_made(job: Job) -> Iterator[Problem]:
    if (
        isinstance(job.stage, TrainingSpec)
        and job.stage.sample_prompt is not None
        and not isinstance(job.stage.objective, (Causal, Tilted, Prefix, BlankInfilling, PolicySpec))
    ):
        reason = f"a model trained on {stem(type(job.stage.objective))} does not go on with a text, so there is no sample"
        yield Problem("stage.sample_prompt", job.stage.sample_prompt, reason, "stage.sample_prompt=null")
    elif isinstance(job.stage, TrainingSpec) and job.stage.sample_prompt is not None and not job.trainer.sample:
        yield Problem(
            "stage.sample_prompt", job.stage.sample_prompt, "trainer.sample=false makes no sample", "trainer.sample=true"
        )


def counting_is_no_optimization(job: Job) -> Iterator[Problem]:
    """Keys that could not do what they say where training is one pass of counting."""
    if job.model.graph != "counts" or not isinstance(job.stage, TrainingSpec):
        return
    why = "this model is fitted by counting, in one pass of one process"
    if job.launch.world() > 1:
        yield Problem("launch", stem(type(job.launch)), why, "launch=single parallel=single")
    if job.init is not None:
        yield Problem("init", job.init, f"{why}: there is nothing to go on from", "init=null")
    if job.trainer.patience is not None:
        yield Problem("trainer.patience", job.trainer.patience, why, "trainer.patience=null")
    if job.trainer.compile:
        yield Problem("trainer.compile", True, why, "trainer.compile=false")
    if not isinstance(job.guard, NoGuard):
        yield Problem("guard", stem(type(job.guard)), f"{why}: there are no steps to watch", "guard=none")
    if isinstance(job.stage.objective, Causal) and job.stage.objective.label_smoothing:
        yield Problem(
            "stage.objective.label_smoothing", job.stage.objective.label_smoothing, why, "stage.objective.label_smoothing=0.0"
        )
    if isinstance(job.stage.objective, Causal) and job.stage.objective.z_loss:
        yield Problem("stage.objective.z_loss", job.stage.objective.z_loss, why, "stage.objective.z_loss=0.0")


def preflight_has_two_to_compare(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec) or not job.trainer.preflight:
        return
    reason = None
    if job.launch.world() == 1:
        reason = "it compares a layout with a single process, and this is one"
    elif isinstance(job.parallel, Auto):
        return  # the layout is found when the job starts
    elif isinstance(job.stage, RlSpec):
        reason = "it compares steps on rows of data, and here the model writes them itself"
    elif not isinstance(job.parallel, Mesh):
        reason = f"it compares steps in float64, which {stem(type(job.parallel))} does not make"
    else:
        small, problems = probe(job)
        if small is None:
            reason = f"the model cannot be made small under this layout: {problems[0].path} = {problems[0].value!r}: {problems[0].reason}"
    if reason is not None:
        yield Problem("trainer.preflight", True, reason, "trainer.preflight=false")
