"""May a run go on in a folder that was made with another config? Compared key by key.

A key is resume-safe if changing it cannot change what any already planned optimizer step computes, beyond the rounding of
floating-point sums. Everything else would make one run of two, so it is refused unless `resume=changed` is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from llmfactory.config.plain import from_plain, to_plain
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import walk
from llmfactory.data.mix.spec import Curriculum
from llmfactory.data.spec import Mixture

SAFE = {
    "name": "says where the run lies",
    "output_dir": "says where the run lies",
    "resume": "is about this comparison itself",
    "trainer.max_steps": "moves the end only; a schedule that depends on it is checked on its own",
    "trainer.patience": "moves the end only",
    "trainer.eval_every": "looks more or less often at the same weights",
    "trainer.log_every": "reports more or less often",
    "trainer.log_parts": "reports more or less",
    "trainer.save_every": "saves more or less often",
    "trainer.save_async": "writes the same files at another time",
    "trainer.keep_last": "is about files kept",
    "trainer.keep_best": "is about files kept",
    "trainer.progress": "is shown only",
    "trainer.preflight": "happens before training, with another model",
    "trainer.sample": "happens after training",
    "stage.sample_prompt": "is used after training",
    "data.cache": "says where prepared data lie; their content is found by hash",
    "data.workers": "changes the time of preparation, not its result",
    "tracking.*": "metrics are written elsewhere",
    "hardware.*": "is what plans reckon with; training uses what it finds",
}
"""Keys (or patterns) that may change freely, and why."""

ROUNDING = {
    "trainer.micro_batch_size": "the same sums in other pieces",
    "trainer.deterministic": "the same sums, perhaps in another order",
    "trainer.compile": "the same sums by other kernels",
    "trainer.in_backward": "the same steps, parameter by parameter",
    "trainer.kernel": "the same sums by other kernels",
    "trainer.device": "the same sums by other kernels",
    "trainer.threads": "the same sums in other pieces",
    "launch.*": "the same global batch on other processes",
    "parallel.*": "the same global batch on other processes",
}
"""Keys that may change too, but after which a run is no longer bit-equal to an unbroken one."""

REDRAWS = {
    "trainer.micro_batch_size": "micro-batches draw one after the other",
    "trainer.device": "CPU and GPU have generators of their own",
    "launch.*": "processes with other rows draw their own",
    "parallel.*": "processes with other tokens or layers draw their own",
}
"""Of those, the keys after which dropout draws other masks."""

# Not safe on purpose: trainer.eval_rows (the lowest held-out loss would be taken over different rows), trainer.batch_size,
# precision, seed, init (they make other numbers), toy, model, data, optim, stage.objective.


def matches(key: str, patterns: dict[str, str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def flatten(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; a list is a leaf."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as {key: (old, new)}; a key that one side does not have counts as None there."""
    before, after = dict(flatten(old)), dict(flatten(new))
    keys = list(after) + [key for key in before if key not in after]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines to tell the user about changed keys that only change rounding. Raises ConfigError if other keys differ.

    `old` is the folder's config.yaml, `new` the command's; both as plain data.
    """
    try:
        old_job = from_plain(old)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            [
                Problem(
                    "name", new["name"], f"its config.yaml is not one that this version can read ({error})", "name=another_name"
                )
            ]
        ) from error
    new_job = from_plain(new)
    found = differences(to_plain(old_job), to_plain(new_job))
    problems = [*_schedule_problems(old_job, new_job, found), *_curriculum_problems(old_job, new_job, found)]
    found = {key: pair for key, pair in found.items() if not matches(key, SAFE)}
    rounding = {key: pair for key, pair in found.items() if matches(key, ROUNDING)}
    for key, (before, after) in found.items():
        if key not in rounding:
            problems.append(Problem(key, after, f"the run in this folder has {before!r}"))
    if problems:
        reason = (
            f"this run folder holds a run with another config: take another one (name={new_job.name}-2) or go on all the same"
        )
        raise ConfigError([*problems, Problem("name", new_job.name, reason, "resume=changed")])
    if not rounding:
        return []
    changed = ", ".join(f"{key} {before!r} -> {after!r}" for key, (before, after) in rounding.items())
    lines = [f"resuming with {changed}: the same mathematics, but no longer bit-equal to an unbroken run"]
    if any(matches(key, REDRAWS) for key in rounding) and _drops(new_job):
        lines.append(
            "dropout draws other masks there, at the same rate: the losses of the next steps are others (docs/randomness.md)"
        )
    if any(matches(key, REDRAWS) for key in rounding) and getattr(new_job.precision, "stochastic", False):
        lines.append(
            "precision.stochastic draws other random numbers there: operands are rounded otherwise, as exactly in the mean"
        )
    return lines


def _drops(job: Job) -> bool:
    """Whether the model has dropout anywhere."""
    return any(getattr(part, f.name) for _, part in walk(job.model) for f in fields(part) if f.name.endswith("dropout"))


def _schedule_problems(old: Job, new: Job, found: dict[str, tuple[Any, Any]]) -> Iterator[Problem]:
    """A schedule is the same if it ends at the same step. Takes the horizon out of `found` where that alone decides."""
    key = "optim.schedule.horizon"
    before = old.optim.schedule.pinned_horizon()
    after = new.optim.schedule.pinned_horizon()
    before = old.trainer.max_steps if before is None else before
    pinned, after = after is not None, new.trainer.max_steps if after is None else after
    if before == after:
        found.pop(key, None)
    elif not pinned and "trainer.max_steps" in found and type(old.optim.schedule) is type(new.optim.schedule):
        found.pop(key, None)
        reason = (
            f"the learning-rate schedule ends at trainer.max_steps, which was {before}: its remaining steps would differ "
            "from those planned (resume=changed takes the new ones)"
        )
        can_pin = key in dict(flatten(to_plain(new))) and before > new.optim.schedule.warmup(before)
        yield Problem("trainer.max_steps", after, reason, f"{key}={before}" if can_pin else "resume=changed")


def _curriculum_problems(old: Job, new: Job, found: dict[str, tuple[Any, Any]]) -> Iterator[Problem]:
    """The same of the weights of a mixture that change in the course of the run."""
    if not (isinstance(old.data, Mixture) and isinstance(new.data, Mixture)):
        return
    if not (isinstance(old.data.mix, Curriculum) and isinstance(new.data.mix, Curriculum)):
        return
    before, after = old.data.mix.span(old.trainer.max_steps), new.data.mix.span(new.trainer.max_steps)
    if before == after:
        found.pop("data.mix.horizon", None)
    elif "data.mix.horizon" not in found:
        reason = (
            f"the weights of data.mix change in the course of trainer.max_steps, which was {before}: other samples would be drawn"
        )
        yield Problem("trainer.max_steps", after, reason, f"data.mix.horizon={before}")
