"""Overrides that choose options of groups, checked against the options that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmfactory.config.arguments import Argument
from llmfactory.config.fields import nearest
from llmfactory.config.register import options
from llmfactory.core.errors import Problem

MANY = 30
"""More options than that are not listed in a message."""
NULLABLE = ("experiment",)
"""Groups that need no option."""


def wants_group(argument: Argument, known: Sequence[str]) -> bool:
    """Whether an override is about a group. `model={dim: 64}` is about values."""
    if isinstance(argument.value, dict):
        return False
    return argument.key in known or "/" in argument.key or argument.package is not None


def choose(
    arguments: Sequence[Argument], known: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, str | None], list[Problem]]:
    """Option by override key, and what is wrong with the rest."""
    choices: dict[str, str | None] = {}
    problems = []
    for argument in arguments:
        problem = _wrong(argument, known, folders)
        if problem is not None:
            problems.append(problem)
        else:
            choices[argument.group_key] = None if _is_null(argument) else argument.raw.strip().strip("'\"")
    return choices, problems


def _is_null(argument: Argument) -> bool:
    return argument.deletes or argument.raw.strip() in ("null", "")


def _wrong(argument: Argument, known: Sequence[str], folders: Sequence[Path]) -> Problem | None:
    group, shown = argument.key, argument.group_key
    if group not in known:
        return _unknown_group(argument, known, folders)
    choices = options(group, folders)
    listed = ", ".join(choices) if len(choices) <= MANY else f"{len(choices)}, which `llmfactory options {group}` lists"
    if _is_null(argument):
        if group in NULLABLE:
            return None
        repair = f"{shown}={'none' if 'none' in choices else choices[0]}"
        return Problem(shown, None, f"a job needs one of {listed}", repair)
    option = argument.raw.strip().strip("'\"")
    if any((folder / group / f"{option}.yaml").is_file() for folder in folders):
        return None
    near = nearest(option, choices)
    meant = f"did you mean {near}? " if near else ""
    return Problem(shown, option, f"is no option of {group}: {meant}there are {listed}", f"{shown}={near or choices[0]}")


def _unknown_group(argument: Argument, known: Sequence[str], folders: Sequence[Path]) -> Problem:
    shown = argument.group_key
    as_key = argument.key.replace("/", ".")
    having = [group for group in known if argument.raw in options(group, folders)]
    near = nearest(argument.key, having) or nearest(argument.key, list(known))
    if near is None and having:
        near = having[0]
    parent = argument.key.rpartition("/")[0]
    if "." in argument.key or (near is None and parent in known):
        reason = "is no group; values are set by their dotted key"
        return Problem(shown, argument.raw, reason, f"{as_key}={argument.raw}" if "." in argument.key else None)
    if near is None:
        return Problem(shown, argument.raw, f"is no group; there are {', '.join(known)}")
    choices = options(near, folders)
    option = argument.raw if argument.raw in choices else nearest(argument.raw, choices) or choices[0]
    return Problem(shown, argument.raw, f"is no group: did you mean {near}?", f"{near}={option}")
