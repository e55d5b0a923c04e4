"""What a profile comes to: figures of all processes from what each has measured, and the tables that are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.core.spec import stem
from llmfactory.parallel.mesh import World
from llmfactory.parallel.plan.spec import Accelerator
from llmfactory.run.peak import matmul_peak
from llmfactory.run.phases import PHASES, StepTime, apart
from llmfactory.run.trace import COMPUTES, Peak
from llmfactory.run.train import labelled_share
from llmfactory.stage.part_flops import PARTS, flops_by_part
from llmfactory.stage.plan import Table
from llmfactory.stage.rows import Data, task_rows
from llmfactory.stage.spec import RlSpec, TrainingSpec
from llmfactory.stage.workload import FORMATS

NO_FLOPS = ("words", "encoder_decoder")
"""Kinds of models whose operations are not so many a token: looking up makes none, two sides see different numbers of tokens."""
SIDE_BY_SIDE = 8
"""Processes that are shown one by one; of more, the mean and the slowest."""
MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "rest": "rest",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one process."""

    rank: int
    steps: list[StepTime]
    tokens: float
    """Of a step, over all processes, padding not counted."""
    parts: list[tuple[str, str, float]]
    """(phase, part, seconds) of the traced step."""
    exposed: float
    """Seconds of it in which its GPU did nothing but communicate."""
    weight_bytes: int
    state_bytes: int
    peak: Peak
    allocator_peak_bytes: int | None
    """What the GPU's allocator says; None: there is none."""


def figures_of(job: Job, data: Data, world: World, everyone: list[Measured]) -> dict[str, Any]:
    """Called by every process (the peak is measured)."""
    found = times_of(everyone, world.device.type == "cuda", alike="pp" not in world.groups, every=isinstance(job.stage, RlSpec))
    seconds, size = found["seconds_per_step"], world.size
    found |= {"tokens_per_step": everyone[0].tokens, "tokens_per_second": everyone[0].tokens / seconds}
    flops = model_flops(job, data)
    peak, whose = peak_flops(job, world)
    found |= {"peak_flops": peak, "peak_is": whose, "flops_per_step": None, "mfu": None}
    if flops is not None:
        whole = sum(flops.values()) * everyone[0].tokens
        found |= {"flops_per_step": whole, "mfu": whole / seconds / peak}
    found["parts"] = parts_of(everyone, found, flops, peak / size, world.device.type == "cuda")
    found["memory"] = [memory_of(one) for one in everyone]
    return found


def middle(steps: Sequence[Sequence[StepTime]]) -> list[int]:
    """Numbers of the steps in the middle half, by how long their slowest process took."""
    order = sorted(range(len(steps)), key=lambda number: max(one.total for one in steps[number]))
    cut = len(order) // 4
    return order[cut : len(order) - cut]


def times_of(everyone: Sequence[Measured], on_gpu: bool, alike: bool = True, every: bool = False) -> dict[str, Any]:
    """Seconds of a step, by phase and process: means over the middle half of the steps, or over `every` one where some of them write the
    answers that the others learn from, which add up as each step does."""
    steps = [[one.steps[number] for one in everyone] for number in range(len(everyone[0].steps))]
    taken = list(range(len(steps))) if every else middle(steps)
    per_step = [apart(steps[number], alike) for number in taken]
    phases = [
        {key: sum(step[place][key] for step in per_step) / len(per_step) for key in PHASES} for place in range(len(everyone))
    ]
    if on_gpu:  # there the stream waits within a phase; how long, the trace says
        for mine, one in zip(phases, everyone, strict=True):
            mine["communication"] = min(one.exposed, mine["backward"])
            mine["backward"] -= mine["communication"]
    totals = [sum(steps[number][place].total for number in taken) / len(taken) for place in range(len(everyone))]
    busy = [total - mine["waiting"] for total, mine in zip(totals, phases, strict=True)]
    return {
        "seconds_per_step": sum(max(one.total for one in steps[number]) for number in taken) / len(taken),
        "all_steps": [max(one.total for one in step) for step in steps],
        "phases": phases,
        "totals": totals,
        "slowest": busy.index(max(busy)),
        "told_apart": alike and len({len(one.waits) for step in steps for one in step}) == 1 and not on_gpu,
    }


def model_flops(job: Job, data: Data) -> dict[str, float] | None:
    """Operations a token, by part; None: they are not so many a token."""
    assert isinstance(job.stage, TrainingSpec)
    if job.model.graph in NO_FLOPS or isinstance(job.stage, RlSpec):
        return None
    objective = job.stage.trained(job)
    share = labelled_share(task_rows(job, objective, data, "train")) if objective.sparse else 1.0
    return flops_by_part(job, share)


def peak_flops(job: Job, world: World) -> tuple[float, str]:
    """(operations a second of all processes, whose figure it is)."""
    kind = FORMATS.get(stem(type(job.precision)), (0, 0, "bf16"))[2]
    published = getattr(job.hardware, f"{kind}_tflops", None) if isinstance(job.hardware, Accelerator) else None
    if published is not None:
        return published * 1e12 * world.size, f"published, {kind}"
    precision = job.precision.build(world.device.type)
    measured = matmul_peak(world.device, precision.products or precision.weights)
    return sum(world.gather(measured)), "measured here"


def parts_of(
    everyone: Sequence[Measured], found: dict[str, Any], flops: dict[str, float] | None, peak: float, on_gpu: bool
) -> list[dict[str, Any]]:
    """Seconds of each part by phase, mean over processes. The profiler slows down the host, so that there the traced times are scaled
    to what forward and backward take without it."""
    sums: dict[tuple[str, str], float] = {}
    for one, mine in zip(everyone, found["phases"], strict=True):
        for phase in COMPUTES:
            traced = {part: seconds for which, part, seconds in one.parts if which == phase and part in PARTS}
            whole = sum(traced.values())
            scale = 1.0 if on_gpu or not whole else mine[phase] / whole
            for part, seconds in traced.items():
                sums[phase, part] = sums.get((phase, part), 0.0) + scale * seconds / len(everyone)
    rows = []
    for part in PARTS:
        lasted = {phase: sums.get((phase, part), 0.0) for phase in COMPUTES}
        both = sum(lasted.values())
        done = flops[part] * everyone[0].tokens / len(everyone) if flops is not None else None
        if both or done:
            speed = done / both if done is not None and both else None
            share = None if speed is None else speed / peak
            rows.append({"part": part, **lasted, "flops": done, "flops_per_second": speed, "share_of_peak": share})
    return rows


def memory_of(one: Measured) -> dict[str, Any]:
    """Bytes at the peak of a step."""
    peak = one.peak
    by = dict(zip(MEMORY, (one.weight_bytes, peak.gradients, one.state_bytes, peak.activations, peak.rest), strict=True))
    total = sum(by.values())
    return {**by, "total": total, "phase": peak.phase, "allocator": one.allocator_peak_bytes}


def tables_of(found: dict[str, Any]) -> list[Table]:
    """Of the run's page and the terminal."""
    tables: list[Table] = [("milliseconds of a step", list(_times(found)))]
    tables.append(("parts of the model, a process's mean", list(_parts(found))))
    tables.append(("MiB at the peak of a step", list(_memory(found))))
    return tables


def _times(found: dict[str, Any]) -> Iterator[list[str]]:
    phases, totals, slowest = found["phases"], found["totals"], found["slowest"]
    several = len(phases) > 1
    means = {key: sum(one[key] for one in phases) / len(phases) for key in PHASES}
    whole = sum(totals) / len(totals)
    columns = [phases[slowest]]
    heads = [f"slowest (rank {slowest})"]
    if len(phases) <= SIDE_BY_SIDE:
        columns = phases
        heads = [f"rank {rank}{' (slowest)' if rank == slowest else ''}" for rank in range(len(phases))]
    yield ["", *(["mean"] if several else []), "share", *(heads if several else ["ms"])]
    for key, name in PHASES.items():
        if (not several and key in ("communication", "waiting")) or (key == "waiting" and not found["told_apart"]):
            continue
        shown = name if found["told_apart"] or key != "communication" or not several else "communication, and waiting for it"
        mine = [f"{1e3 * one[key]:,.2f}" for one in columns]
        yield [shown, *([f"{1e3 * means[key]:,.2f}"] if several else []), f"{means[key] / whole:.1%}", *mine]
    sums = [f"{1e3 * sum(one.values()):,.2f}" for one in columns]
    yield ["whole step", *([f"{1e3 * whole:,.2f}"] if several else []), "100.0%", *sums]


def _parts(found: dict[str, Any]) -> Iterator[list[str]]:
    rows = found["parts"]
    whole = sum(row[phase] for row in rows for phase in COMPUTES) or 1.0
    yield ["", "forward ms", "backward ms", "share", "GFLOP", "GFLOP/s", "of peak"]
    for row in rows:
        both = sum(row[phase] for phase in COMPUTES)
        done, speed, share = row["flops"], row["flops_per_second"], row["share_of_peak"]
        yield [
            PARTS[row["part"]],
            *(f"{1e3 * row[phase]:,.2f}" for phase in COMPUTES),
            f"{both / whole:.1%}",
            f"{done / 1e9:,.3f}" if done else "-",
            f"{speed / 1e9:,.2f}" if speed else "-",
            f"{share:.1%}" if share else "-",
        ]


def _memory(found: dict[str, Any]) -> Iterator[list[str]]:
    ranks = found["memory"]
    shown = list(enumerate(ranks))
    if len(ranks) > SIDE_BY_SIDE:
        shown = [max(shown, key=lambda one: one[1]["total"])]
    yield ["", *(f"rank {rank}, in {one['phase']}" if len(ranks) > 1 else f"in {one['phase']}" for rank, one in shown)]
    for key, name in MEMORY.items():
        yield [name, *(f"{one[key] / 2**20:,.2f}" for _, one in shown)]
    yield ["all", *(f"{one['total'] / 2**20:,.2f}" for _, one in shown)]
    if ranks[0]["allocator"]:
        yield ["what the allocator says", *(f"{one['allocator'] / 2**20:,.2f}" for _, one in shown)]
