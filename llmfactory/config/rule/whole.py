"""Rules about stages that take a model of `init` whole into every process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum

from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.spec import Embed, Evaluate, Export, Generate, Rejection


def whole_models_are_not_cut(job: Job) -> Iterator[Problem]:
    """Only training lays a model out; here a layout would be accepted and do nothing."""
    if not isinstance(job.stage, (Evaluate, Generate, Embed, Export, Rejection)):
        return
    cut = {axis: size for axis, size in degrees_of(job).items() if axis != "dp_replicate" and size > 1}
    for axis, size in list(cut.items())[:1]:
        does = "each takes a part of the rows" if isinstance(job.stage, (Evaluate, Rejection)) else "all do the same"
        reason = f"outside of training every process holds the whole model, and {does}; nothing is cut"
        yield Problem(f"parallel.{axis}", size, reason, _copies(job))


def _copies(job: Job) -> str:
    """parallel=ddp, and back to it whatever the command line may have set beside."""
    layout, ddp = job.parallel, Mesh(dp_replicate=None)
    assert isinstance(layout, Mesh)
    found = ["parallel=ddp"]
    for field in fields(Mesh):
        value = getattr(ddp, field.name)
        if getattr(layout, field.name) != value and field.name not in ("backend", "timeout_s"):
            text = value.name if isinstance(value, Enum) else json.dumps(value)
            found.append(f"parallel.{field.name}={text}")
    return " ".join(found)
