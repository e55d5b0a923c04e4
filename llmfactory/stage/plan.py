"""What a training job needs and how long it takes, before it runs: memory by category, messages by group, time, cost.

Printed as tables; under a name also in the run folder, with a picture of the layout. Nothing is started, so any number of
processes can be asked for (`launch=local launch.processes=1024`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.launch.spec import Local
from llmfactory.parallel.plan.arrangement import arrange
from llmfactory.parallel.plan.drawing import draw
from llmfactory.parallel.plan.forecast import Forecast, forecast
from llmfactory.parallel.plan.memory import CATEGORIES
from llmfactory.parallel.plan.messages import Message
from llmfactory.parallel.plan.search import Question
from llmfactory.parallel.plan.seconds import message_seconds
from llmfactory.parallel.plan.spec import Accelerator
from llmfactory.parallel.spec import Auto, Mesh, TensorForm
from llmfactory.stage.choice import choose, legal, question_of, told
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Plan
from llmfactory.stage.workload import FORMATS, work_of

GIB = 2**30

DRAWING = "layout.svg"
"""The picture, in the run folder."""

Table = tuple[str, list[list[str]]]
"""Title, and rows of cells; the first row is the head."""


class PlanJob(StageJob):
    """Runs in one process, whatever launch says."""

    def __init__(self, spec: Plan) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        lines: list[str] = []
        if isinstance(job.parallel, Auto):
            best, found, question = choose(job)
            lines = list(told(found, question))
            seen = best.forecast
        else:
            question = question_of(job)
            seen = reckoned(job, question)
        tables = list(tables_of(job, question, seen, self.spec.tokens))
        for line in lines:
            print(line)
        for title, rows in tables:
            print(f"\n{title}", *aligned(rows), sep="\n")
        if folder is not None:
            (folder / DRAWING).write_text(
                draw(seen.arrangement, question.work, question.machine.devices_per_node), encoding="utf-8"
            )
        return {"plan": figures_of(question, seen, self.spec.tokens, job), "tables": tables, "lines": lines}


def reckoned(job: Job, question: Question) -> Forecast:
    """The forecast of the job's own layout. Raises UserError where it is one that cannot be reckoned or may not run."""
    mesh = job.parallel
    if not isinstance(mesh, Mesh):
        raise UserError("a plan reckons layouts of our own engine: choose another option of parallel, e.g. parallel=zero3")
    if mesh.tensor_form is TensorForm.summa:
        raise UserError("a plan reckons matrices cut along one dimension only: parallel.tensor_form=one_d")
    seen = forecast(mesh, question.world, job.trainer.micro_batch_size, question.work, question.machine)
    problem = legal(job)(mesh, seen.pace.rows)
    if problem is not None:
        raise UserError(f"a training job may not run so: {problem}")
    return seen


def draw_layout(job: Job) -> str | None:
    """The picture of a training job's layout; None: it is no mesh of several processes, or nothing that a plan knows."""
    world, mesh = job.launch.world(), job.parallel
    if not isinstance(mesh, Mesh) or world == 1 or mesh.tensor_form is TensorForm.summa:
        return None
    if job.model.graph == "counts" or stem(type(job.precision)) not in FORMATS:
        return None
    devices = world if isinstance(job.launch, Local) else DEVICES
    if isinstance(job.hardware, Accelerator):
        devices = job.hardware.devices_per_node
    return draw(arrange(mesh, world), work_of(job, is_cpu=True), devices)


DEVICES = 8
"""Of a machine, where nothing else is said."""


def figures_of(question: Question, seen: Forecast, tokens: float | None, job: Job) -> dict[str, Any]:
    """The plan as numbers: bytes, seconds, operations."""
    work, fullest, slowest = question.work, seen.fullest, seen.slowest
    rows = job.trainer.sizes(job.data.seq_len).before(job.trainer.max_steps)
    wanted = tokens or float(rows * work.tokens / work.rows)
    steps = wanted / work.tokens
    hours = steps * seen.seconds / 3600
    price = question.machine.price_per_hour
    sent: dict[str, dict[str, float]] = {}
    for one in slowest.messages:
        by_group = sent.setdefault(one.operation, {})
        by_group[one.group] = by_group.get(one.group, 0.0) + one.total
    return {
        "device": question.machine.name,
        "processes": question.world,
        "parameters": work.parameters,
        "trained_parameters": work.trained_parameters,
        "memory_bytes": fullest.memory.plain(),
        "memory_total_bytes": fullest.memory.total,
        "memory_limit_bytes": seen.memory_limit,
        "fits": seen.fits,
        "rule_of_16_bytes": 16 * work.parameters / question.world,
        "rule_of_1_2": 1.2 * 16 * work.parameters / question.world,
        "flops_per_step": work.flops,
        "tokens_per_step": work.tokens,
        "sent_bytes_per_step": sent,
        "seconds_per_step": seen.seconds,
        "seconds": {
            "compute": slowest.seconds.compute,
            **slowest.seconds.exposed,
            "idle": slowest.seconds.idle,
            "optimizer": slowest.seconds.optimizer,
        },
        "tokens_per_second": work.tokens / seen.seconds,
        "mfu": work.flops / seen.seconds / question.world / question.machine.peak[work.product_format],
        "tokens": wanted,
        "days": hours / 24,
        "cost": None if price is None else hours * question.world * price,
    }


def tables_of(job: Job, question: Question, seen: Forecast, tokens: float | None) -> Iterator[Table]:
    """What is shown."""
    found = figures_of(question, seen, tokens, job)
    yield "plan", list(_headline(found, question, seen))
    yield "memory of a process, GiB, by its place in the pipeline", list(_memory(seen))
    if any(process.messages for process in seen.processes):
        yield "messages of a process in a step", list(_messages(question, seen))
    yield "seconds of a step", list(_seconds(seen))


def _headline(found: dict[str, Any], question: Question, seen: Forecast) -> Iterator[list[str]]:
    yield ["", ""]
    yield ["devices", f"{question.world} x {question.machine.name}, {question.machine.devices_per_node} a machine"]
    yield ["parameters", f"{found['parameters']:,}"]
    if found["trained_parameters"] != found["parameters"]:
        yield ["  of which are trained", f"{found['trained_parameters']:,}"]
    verdict = "fits" if seen.fits else "does not fit"
    used, limit = found["memory_total_bytes"] / GIB, seen.memory_limit / GIB
    yield ["memory", f"{used:.1f} GiB of {limit:.1f} that may be filled: {verdict}"]
    yield ["  16 bytes a parameter, shared evenly", f"{found['rule_of_16_bytes'] / GIB:.1f} GiB"]
    yield ["  1.2 times that", f"{found['rule_of_1_2'] / GIB:.1f} GiB"]
    yield ["micro-batches", f"{seen.pace.micro_batches} of {seen.pace.rows} row{'s' if seen.pace.rows > 1 else ''}"]
    yield ["operations a step", f"{found['flops_per_step']:.4g}"]
    yield ["step", f"{found['seconds_per_step']:.4g} s for {found['tokens_per_step']:,} tokens"]
    yield ["tokens/s", f"{found['tokens_per_second']:,.0f}, {found['tokens_per_second'] / question.world:,.0f} a device"]
    yield [
        "model FLOPs utilization",
        f"{found['mfu']:.1%} of {question.machine.peak[question.work.product_format] / 1e12:,.4g} TFLOP/s",
    ]
    yield ["training", f"{found['tokens']:,.0f} tokens take {found['days']:.4g} days"]
    if found["cost"] is not None:
        yield ["cost", f"{found['cost']:,.0f} at {question.machine.price_per_hour} a device and hour"]


def _memory(seen: Forecast) -> Iterator[list[str]]:
    offloads = any(process.memory.host for process in seen.processes)
    yield ["place", *CATEGORIES.values(), "all", *(["on the host"] if offloads else [])]
    for process in seen.processes:
        values = [getattr(process.memory, name) for name in CATEGORIES] + [process.memory.total]
        values += [process.memory.host] if offloads else []
        yield [str(process.number), *(f"{value / GIB:.3f}" for value in values)]


def _messages(question: Question, seen: Forecast) -> Iterator[list[str]]:
    at, devices = seen.arrangement, question.machine.devices_per_node
    yield ["what", "operation", "group", "over", "messages", "MiB sent", "seconds"]
    for one in merged(seen.slowest.messages):
        group = at.group(one.group)
        over = "links" if group.per_node(devices) == group.size else "network"
        seconds = message_seconds(one, at, question.machine)
        yield [
            one.what,
            one.operation,
            f"{one.group} ({group.size})",
            over,
            f"{one.count:,.0f}",
            f"{one.total / 2**20:,.1f}",
            f"{seconds:.4g}",
        ]


def merged(messages: Sequence[Message]) -> list[Message]:
    """Messages of one kind together."""
    found: dict[tuple[str, str, str, float], Message] = {}
    for one in messages:
        key = (one.what, one.operation, one.group, one.sent)
        count = one.count + (found[key].count if key in found else 0)
        found[key] = Message(one.what, one.operation, one.group, one.sent, count, one.hidden)
    return list(found.values())


def _seconds(seen: Forecast) -> Iterator[list[str]]:
    groups = list(dict.fromkeys(group for process in seen.processes for group in process.seconds.exposed))
    yield ["place", "computing", *(f"waiting for {group}" for group in groups), "idle", "optimizer", "all"]
    for process in seen.processes:
        one = process.seconds
        values = [one.compute, *(one.exposed.get(group, 0.0) for group in groups), one.idle, one.optimizer, one.total]
        yield [str(process.number), *(f"{value:.4g}" for value in values)]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns aligned, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        if any(row):
            cells = [
                cell.ljust(width) if number == 0 or len(row) == 2 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  " + "  ".join(cells).rstrip()
