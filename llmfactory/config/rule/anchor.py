"""Rules about what holds a model near the one that it starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.peft.spec import AdapterSpec
from llmfactory.stage.anchor.spec import Ewc, None_
from llmfactory.stage.spec import Fisher, TrainingSpec


def an_anchor_has_something_to_hold(job: Job) -> Iterator[Problem]:
    """Old weights, which are trained, by steps of ours."""
    if not isinstance(job.stage, TrainingSpec) or isinstance(job.stage.anchor, None_):
        return
    name, reason = stem(type(job.stage.anchor)), None
    if job.init is None:
        reason = "the model is new, so there are no old weights to stay near: give init=outputs/<run>"
    elif isinstance(job.peft, AdapterSpec):
        reason = f"with peft={stem(type(job.peft))} the weights of init stay as they are, and what is trained has no old values"
    elif isinstance(job.parallel, DeepSpeed):
        reason = "DeepSpeed steps by itself, with the gradients of the loss alone"
    if reason is not None:
        yield Problem("stage.anchor", name, reason, "stage/anchor=none")


def what_matters_was_measured(job: Job) -> Iterator[Problem]:
    anchor = job.stage.anchor if isinstance(job.stage, TrainingSpec) else None
    if not isinstance(anchor, Ewc) or job.init is None:
        return
    path = anchor.place(Path(job.init).expanduser())
    if anchor.file is None and not path.is_file():
        reason = f"there is no {path}, which says how much each weight matters: run stage=fisher init={job.init} first"
        yield Problem("stage.anchor", "ewc", reason, "stage/anchor=l2_sp")


def one_process_measures_what_matters(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, Fisher) and job.launch.world() > 1:
        reason = "stage=fisher goes through its rows one by one, in one process"
        yield Problem("launch", stem(type(job.launch)), reason, "launch=single parallel=single")
