"""A small job with the parts, the objective and the layout of a real one, for a preflight (`run/preflight.py`).

What a layout deals out must be there to be dealt out: heads and experts, a layer for each stage of a pipeline. So the model is
made of laptop size first; if the rules refuse that under the layout, it keeps its numbers of heads and experts, and only widths
are made small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from llmfactory.config.spec import Job
from llmfactory.config.toy import POSITIONS, small_model
from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, walk
from llmfactory.data.spec import Labelled
from llmfactory.model.spec import ModelSpec
from llmfactory.optim.schedule.spec import Constant
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.batch_ramp.spec import None_ as NoRamp

STEPS = 2
"""Steps of a probe: the second one sees what the first one did to the weights."""
COUNTS = ("n_heads", "n_kv_heads", "n_experts", "k")
"""Fields with numbers of things that a layout deals out."""
HIDDEN = ("hidden", "shared_hidden")
"""Fields with numbers of hidden units, likewise."""
CHANCE = ("dropout", "jitter")
"""Ends of the names of fields that say how much is left to chance. Each layout draws other numbers."""
HEAD = 4
"""Width of a head where all heads are kept."""

S = TypeVar("S", bound=Spec)


def probe(job: Job) -> tuple[Job | None, list[Problem]]:
    """The small job, or None and what is wrong with the last one that was tried."""
    problems: list[Problem] = []
    for counts in (False, True):
        small = _small(job, counts)
        problems = _problems(small)
        if not problems:
            return small, []
    return None, problems


def _problems(job: Job) -> list[Problem]:
    from llmfactory.config.rules import check  # where a rule asks for a probe

    found = [problem.below(path) for path, part in walk(job.model, "model") for problem in part.problems()]
    return found or check(job)


def _small(job: Job, counts: bool) -> Job:
    assert isinstance(job.parallel, Mesh)
    degrees = job.parallel.degrees_for(job.launch.world())
    model = _deep(small_model(job.model, job.model.vocab_size), job.model, degrees["pp"] * job.parallel.stages_per_process)
    if counts:
        model = _with_counts(model, job.model, degrees["tp"])
    seq_len = job.data.seq_len
    if not isinstance(job.data, Labelled):  # the rows of examples are as long as they are
        seq_len = min(seq_len, max(POSITIONS, 4 * degrees["cp"] * degrees["tp"]))
    model = dataclasses.replace(model, max_positions=min(job.model.max_positions, max(POSITIONS, seq_len)))
    ranks = degrees["dp_replicate"] * degrees["dp_shard"]
    trainer = dataclasses.replace(
        job.trainer,
        max_steps=STEPS,
        batch_size=ranks * 2 * degrees["pp"],
        batch_ramp=NoRamp(),
        micro_batch_size=1,
        log_every=1,
        eval_every=None,
        save_every=None,
        save_async=False,
        keep_best=False,
        patience=None,
        compile=False,
        sample=False,
        preflight=False,
    )
    return dataclasses.replace(
        job,
        model=_rebuilt(model, "model", _left_to_chance),
        data=dataclasses.replace(job.data, seq_len=seq_len),
        optim=dataclasses.replace(job.optim, schedule=Constant()),
        precision=Fp64(),
        trainer=trainer,
        init=None,
        name=None,
    )


def _deep(small: ModelSpec, whole: ModelSpec, stages: int) -> ModelSpec:
    """With a layer for each stage of a pipeline, in whole patterns, if there are so many."""
    before = dict(walk(whole, "model"))

    def layers(part: Spec, path: str) -> dict[str, Any]:
        if not hasattr(part, "n_layers"):
            return {}
        pattern = part.n_layers
        return {"n_layers": min(cast(Any, before[path]).n_layers, math.ceil(stages / pattern) * pattern)}

    return _rebuilt(small, "model", layers)


def _with_counts(small: ModelSpec, whole: ModelSpec, tp: int) -> ModelSpec:
    """With as many heads and experts as the whole model has, and hidden units for each of `tp` processes."""
    before = dict(walk(whole, "model"))

    def counts(part: Spec, path: str) -> dict[str, Any]:
        hidden = {name: getattr(part, name) for name in HIDDEN if getattr(part, name, 0)}
        return {
            **{name: getattr(before[path], name) for name in COUNTS if hasattr(part, name)},
            **{name: math.ceil(units / tp) * tp for name, units in hidden.items()},
        }

    heads = [part.n_heads for part in before.values() if hasattr(part, "n_heads")]
    wide = _rebuilt(small, "model", counts)
    return dataclasses.replace(wide, dim=math.lcm(*heads) * HEAD) if heads else wide


def _left_to_chance(part: Spec, path: str) -> dict[str, Any]:
    return {field.name: 0.0 for field in dataclasses.fields(part) if field.name.endswith(CHANCE)}


def _rebuilt(part: S, path: str, changes: Callable[[Spec, str], dict[str, Any]]) -> S:
    """The spec and all that it holds, with changed fields."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value, below = getattr(part, field.name), f"{path}.{field.name}"
        if isinstance(value, Spec):
            found[field.name] = _rebuilt(value, below, changes)
        elif isinstance(value, dict):
            found[field.name] = {
                key: _rebuilt(item, f"{below}.{key}", changes) if isinstance(item, Spec) else item for key, item in value.items()
            }
    return dataclasses.replace(part, **found, **changes(part, path))
