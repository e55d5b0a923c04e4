"""From a job to what a plan reckons with, and from `parallel=auto` to a layout.

The layout is found after composing, by the process that starts the others: composing stays free of torch, on which the count of the
model's parameters stands. Whether a candidate may run, the rules of composing say (`config/rules.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from llmfactory.config import rules
from llmfactory.config.compose import compose_job
from llmfactory.config.profiled import trained
from llmfactory.config.register import options
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem, walk
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.objective.spec import answers_of, natural
from llmfactory.parallel.plan.accelerator import Machine, machine
from llmfactory.parallel.plan.detected import device_here, option_of
from llmfactory.parallel.plan.measured import read_measurement
from llmfactory.parallel.plan.search import Candidate, Found, Legal, Question, search
from llmfactory.parallel.plan.spec import Accelerator, Measured
from llmfactory.parallel.spec import Auto, Mesh
from llmfactory.stage.spec import Pretrain, TrainingSpec
from llmfactory.stage.workload import FORMATS, work_of


def machine_of(job: Job) -> Machine:
    """What the job's hardware says. Raises UserError where a device is unknown, or does not compute in the job's precision."""
    spec, measured = job.hardware, None
    name = stem(type(spec))
    if isinstance(spec, Measured):
        measured = read_measurement(Path(spec.file).expanduser())
    if isinstance(spec, Accelerator):
        found, name = spec, spec.names[0] if spec.names else "the device"
    else:
        chosen = spec.device if isinstance(spec, Measured) else None
        known = _catalogue()
        name = chosen or option_of(device_here(), {option: one.names for option, one in known.items()})
        if name not in known:
            raise UserError(f"hardware.device={name} is none of {', '.join(known)}")
        found = known[name]
    built = machine(found, name, spec.price_per_hour, measured)
    wanted = FORMATS[stem(type(job.precision))][2] if stem(type(job.precision)) in FORMATS else "fp32"
    if wanted not in built.peak:
        better = next(option for option in ("fp16_mixed", "fp32") if FORMATS[option][2] in built.peak)
        raise UserError(f"{name} makes no matrix products in {wanted} by its data sheet: try precision={better}")
    return built


def _catalogue() -> dict[str, Accelerator]:
    """Hardware with numbers of its own, by option."""
    found = {}
    for option in options("hardware"):
        if option not in ("detected", "measured"):
            spec = compose_job([f"hardware={option}", "stage=describe"]).job.hardware
            assert isinstance(spec, Accelerator)
            found[option] = spec
    return found


def question_of(job: Job) -> Question:
    """What a layout is looked for."""
    built = machine_of(job)
    experts = max((part.n_experts for _, part in walk(job.model) if isinstance(part, MoeSpec)), default=0)
    size = job.trainer.micro_batch_size
    return Question(work_of(job, built.is_cpu), built, job.launch.world(), _base(job), size, experts)


def _base(job: Job) -> Mesh:
    mesh = job.parallel.mesh()
    return Mesh(backend=mesh.backend, timeout_s=mesh.timeout_s)


def training(job: Job) -> Job:
    """The job that a plan is about: with the usual objective of its model where its own stage does not train."""
    if isinstance(job.stage, TrainingSpec):
        return job
    usual = natural(job.model.graph, answers_of(job.model))
    return job if usual is None else dataclasses.replace(job, stage=Pretrain(objective=usual()))


def legal(job: Job) -> Legal:
    """What the rules say of a job with another layout."""
    base = training(job)
    before = {(problem.path, problem.reason) for problem in rules.check(with_layout(base, Mesh(dp_replicate=None), None))}

    def ask(mesh: Mesh, micro_batch_size: int) -> str | None:
        problems = rules.check(with_layout(base, mesh, micro_batch_size))
        new = [
            problem for problem in problems if (problem.path, problem.reason) not in before or problem.path.startswith("parallel")
        ]
        return f"{new[0].path}={new[0].value}: {new[0].reason}" if new else None

    return ask


def with_layout(job: Job, mesh: Mesh, micro_batch_size: int | None) -> Job:
    trainer = dataclasses.replace(job.trainer, micro_batch_size=micro_batch_size or job.trainer.micro_batch_size)
    return dataclasses.replace(job, parallel=mesh, trainer=trainer)


def choose(job: Job) -> tuple[Candidate, Found, Question]:
    """The best layout for `parallel=auto`. Raises UserError where none fits."""
    question = question_of(job)
    found = search(question, legal(job))
    ranking = found.ranking
    if not ranking:
        nearest = min(found.rejected.values(), key=lambda one: one.forecast.fullest.memory.total, default=None)
        why = f"; the nearest {nearest.rejected}" if nearest is not None and nearest.rejected else ""
        raise UserError(
            f"parallel=auto finds no layout of {question.world} processes that can run this job on {question.machine.name}{why}: "
            f"use more processes, a smaller model or batch, or hardware with more memory"
        )
    return ranking[0], found, question


def resolved(job: Job) -> tuple[Job, list[str]]:
    """A training job with the layout that `parallel=auto` means, and lines that say how it was found; others as they are."""
    inner = trained(job)
    if not isinstance(job.parallel, Auto) or not isinstance(inner.stage, TrainingSpec):
        return job, []
    best, found, question = choose(inner)
    return with_layout(job, best.mesh, best.micro_batch_size), list(told(found, question))


def told(found: Found, question: Question) -> Iterator[str]:
    """The ten best, why each is not the first, and what would be faster but cannot be used."""
    ranking = found.ranking[:10]
    yield f"layouts of {question.world} processes on {question.machine.name} ({found.looked_at:,} reckoned):"
    for number, one in enumerate(ranking, start=1):
        why = "chosen" if number == 1 else why_slower(one, ranking[0])
        used = one.forecast.fullest.memory.total / 2**30
        yield f"{number:3}. {one.seconds:10.4g} s a step  {used:7.1f} GiB  {spelled(one)}  {why}"
    for one in found.refused:
        yield f"  -  {one.seconds:10.4g} s a step  {spelled(one)}  rejected: {one.rejected}"


def why_slower(one: Candidate, best: Candidate) -> str:
    """Where the time goes that the best layout does not need."""
    mine, its = one.forecast.slowest.seconds, best.forecast.slowest.seconds
    groups = {*mine.exposed, *its.exposed}
    more = {f"waiting for {group}": mine.exposed.get(group, 0.0) - its.exposed.get(group, 0.0) for group in groups}
    more |= {
        "computing": mine.compute - its.compute,
        "idle stages": mine.idle - its.idle,
        "the optimizer": mine.optimizer - its.optimizer,
    }
    largest = max(more, key=lambda name: more[name])
    slower = one.seconds / best.seconds - 1
    if slower < 5e-4:
        memory = one.forecast.fullest.memory.total - best.forecast.fullest.memory.total
        return f"rejected: as fast, {memory / 2**30:+.1f} GiB" if memory else "rejected: as good, more kinds of messages"
    return f"rejected: {slower:.1%} slower, most of it {largest}"


def spelled(one: Candidate) -> str:
    """A layout as overrides."""
    mesh, defaults = one.mesh, Mesh()
    names = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep")
    words = [f"{name}={getattr(mesh, name)}" for name in names if getattr(mesh, name) != 1] or ["single"]
    if mesh.dp_shard != 1:
        words.append(f"zero={mesh.zero.name}")
    if mesh.pp > 1:
        words.append(f"schedule={mesh.schedule.name}")
    if mesh.cp > 1:
        words.append(f"context_method={mesh.context_method.name}")
    words += [name for name in ("sequence_parallel", "loss_parallel", "recompute") if getattr(mesh, name)]
    if mesh.offload is not defaults.offload:
        words.append(f"offload={mesh.offload.name}")
    return " ".join([*words, f"micro_batch_size={one.micro_batch_size}"])
