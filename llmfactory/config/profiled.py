"""`stage=profile` wraps the stage that the rest of the command picks, so that a training's command needs one word more to be profiled.

Everything else is composed as if that word were not there: defaults, experiments, `init`, options and values, a `stage=sft` before it.
`stage.of=sft` stands for `stage=sft`, `stage.of.objective.z_loss=1` for `stage.objective.z_loss=1`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

from llmfactory.config.arguments import Argument
from llmfactory.config.spec import Job
from llmfactory.config.tree import COMMAND_LINE, Branch, Tree
from llmfactory.core.errors import Problem
from llmfactory.stage.spec import Profile

CHOSEN = f"conf/stage/profile.yaml, chosen by {COMMAND_LINE}"
OWN = tuple(f"stage.{field.name}" for field in dataclasses.fields(Profile) if field.name != "of")


def unwrapped(arguments: Sequence[Argument]) -> tuple[list[Argument], list[Argument] | None]:
    """(the overrides of what is profiled, those of the profile itself); None: nothing is profiled."""
    stages = [one.raw.strip() for one in arguments if one.key == "stage"]
    if stages[-1:] != ["profile"]:
        return list(arguments), None
    inner, own = [], []
    for one in arguments:
        if one.key in OWN:
            own.append(one)
        elif one.key == "stage.of":
            inner.append(replace(one, key="stage"))
        elif not (one.key == "stage" and one.raw.strip() == "profile"):
            inner.append(_inner(one))
    return inner, own


def for_hydra(lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Hydra knows of no stage round another: (lines of what is profiled alone, what comes behind them when we compose them)."""
    split = [(line, *line.lstrip("+").partition("=")) for line in lines]
    stages = [value.strip() for _, key, _, value in split if key == "stage"]
    if stages[-1:] != ["profile"]:
        return list(lines), ()
    inner = []
    for line, key, equals, value in split:
        if key == "stage.of":
            inner.append(f"stage{equals}{value}")
        elif not (key == "stage" and value.strip() == "profile"):
            inner.append(line.replace("stage.of.", "stage.", 1) if key.startswith("stage.of.") else line)
    return inner, ("stage=profile",)


def _inner(one: Argument) -> Argument:
    place = one.package and one.package.replace("stage.of.", "stage.", 1)
    return replace(
        one, key=one.key.replace("stage.of.", "stage.", 1), package=None if place == one.key.replace("/", ".") else place
    )


def wrap(tree: Tree) -> None:
    """Put the profile round the stage."""
    inner = tree.root.values["stage"]
    outer = Branch.of(Profile, CHOSEN)
    outer.values["of"], outer.origins["of"] = inner, tree.root.origins["stage"]
    tree.root.values["stage"], tree.root.origins["stage"] = outer, CHOSEN


def trained(job: Job) -> Job:
    """The training that a profile is of; any other job as it is."""
    return replace(job, stage=job.stage.of) if isinstance(job.stage, Profile) else job


def told(problem: Problem) -> Problem:
    """A problem of what is profiled, with a repair that changes it and not the profile."""
    repair = problem.repair
    if repair is not None:
        repair = " ".join(f"stage.of={word[6:]}" if word.startswith("stage=") else word for word in repair.split(" "))
    return replace(problem, repair=repair)
