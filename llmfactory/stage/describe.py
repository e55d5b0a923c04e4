"""What a command line would run, without running it: the config with the origin of every value, the model part by part, how
its parameters may be cut, how much one optimizer step takes, the learning rate along the way.

The model is built on torch's meta device: shapes without memory, so that any size can be asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmfactory.config.explain import explain
from llmfactory.config.spec import Job
from llmfactory.core.sharding import Parameter
from llmfactory.model.count import by_part, parameters
from llmfactory.model.skeleton import Skeleton
from llmfactory.stage.architectures import architectures
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Describe
from llmfactory.stage.workload import train_flops_of


class DescribeJob(StageJob):
    """Prints the description; without origins, which only the composing process knows."""

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        print(describe(job, {}))
        return {"parameters": parameters(meta(job))}


def describe(job: Job, origins: Mapping[str, str]) -> str:
    """The whole description as text, or the table of presets."""
    if isinstance(job.stage, Describe) and job.stage.presets:
        return architectures()
    model = meta(job)
    sections = {
        "config": list(table(explain(job, origins))),
        "model": list(_model(job, model)),
        "parameters": list(_parts(model)),
        "layout (how tensor parallelism may cut each parameter)": list(_layout(job, model)),
        "optimizer step": list(_step(job)),
        "learning rate": list(_rates(job)),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def meta(job: Job) -> Skeleton:
    """The model without memory, with what the method adds to it."""
    with torch.device("meta"):
        model = job.model.build()
        job.peft.apply(model)
    return model


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns aligned; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            f"{cell:>{w}}" if cell[:1].isdigit() and i else f"{cell:<{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _model(job: Job, model: Skeleton) -> Iterator[str]:
    names = [type(module).__name__ for _, module in model.chain()]
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    yield " -> ".join(name if count == 1 else f"{count} x {name}" for name, count in runs)


def _parts(model: Skeleton) -> Iterator[str]:
    total = parameters(model)
    rows: list[tuple[str, ...]] = [
        (row.part, row.kind, str(row.copies), f"{row.parameters:,}", f"{row.parameters / total:.1%}") for row in by_part(model)
    ]
    learns = sum(one.numel() for one in model.parameters() if one.requires_grad)
    last = [("all", "", "", f"{total:,}", "")]
    if learns != total:
        last.append(("trained", "", "", f"{learns:,}", f"{learns / max(1, total):.2%}"))
    yield from table([("part", "class", "copies", "parameters", "share"), *rows, *last])


def _layout(job: Job, model: Skeleton) -> Iterator[str]:
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    rows: dict[tuple[str, ...], int] = {}
    for name, declared in job.optim.width.declared(model, job.model, job.peft.apply).items():
        key = (re.sub(r"\b\d+\b", "*", name), _shape(shapes[name]), declared.layout.value, str(declared.start), _decay(declared))
        rows[key] = rows.get(key, 0) + 1
    yield from table([("parameter", "shape", "cut", "starts as", "decays"), *rows])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _decay(declared: Parameter) -> str:
    return "yes" if declared.decay else "no"


def _step(job: Job) -> Iterator[str]:
    rows, length = job.trainer.batch_size, job.data.seq_len
    tokens = rows * length
    flops = train_flops_of(job) * tokens
    yield f"{tokens:,} tokens: {rows} rows of {length}, over {job.launch.world()} process(es)"
    yield f"{job.trainer.max_steps:,} steps, {tokens * job.trainer.max_steps:,} tokens in all"
    yield f"{flops:.3g} floating-point operations a step, {flops * job.trainer.max_steps:.3g} in all"


def _rates(job: Job) -> Iterator[str]:
    schedule, steps = job.optim.schedule.build(job.trainer.max_steps), job.trainer.max_steps
    points = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    yield from table([(f"step {step + 1}", f"{job.optim.lr * schedule(step):.4g}") for step in points])
