"""Overrides that choose options of groups, checked against the options that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from llmfactory.config.arguments import Argument
from llmfactory.config.fields import nearest
from llmfactory.config.register import conf_folder, options
from llmfactory.core.errors import Problem

MANY = 30
"""More options than that are not listed in a message."""
NULLABLE = ("experiment",)
"""Groups that need no option."""


@dataclass(frozen=True, slots=True)
class Several:
    """A group of which a config may have several options at once, each under its own name or one of the user's."""

    key: str
    """What overrides the list."""
    whole: tuple[str, str] | None = None
    """Group and option of the config that takes a list, where others take one; None: the usual one does."""
    place: str | None = None
    """Dotted key of them all; None: that of the group."""


SEVERAL = {
    "data/source": Several("data/source@data.sources", ("data", "mixture")),
    "data/clean": Several("data/clean"),
    "stage/grader": Several("stage/grader", place="stage.graders"),
}
Choice = str | list[str] | None


def wants_group(argument: Argument, known: Sequence[str]) -> bool:
    """Whether an override is about a group. `model={dim: 64}` is about values."""
    if isinstance(argument.value, dict):
        return False
    return argument.key in known or "/" in argument.key or argument.package is not None


def choose(
    arguments: Sequence[Argument], known: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, Choice], list[Problem]]:
    """Option by override key (several where a list is given), and what is wrong with the rest."""
    choices: dict[str, Choice] = {}
    problems, wholes = [], []
    for argument in arguments:
        several = SEVERAL.get(argument.key)
        a_list = several is not None and isinstance(argument.value, list)
        problem = _wrong_list(argument, known, folders) if a_list else _wrong(argument, known, folders)
        if problem is not None:
            problems.append(problem)
            continue
        key = argument.group_key
        if several is not None and a_list and argument.package is None:
            key = several.key
        if several is not None and several.whole is not None and (key == several.key or adds(key)):
            wholes.append(several.whole)
        if a_list:
            choices[key] = [str(item) for item in argument.value]
        else:
            choices[key] = None if _is_null(argument) else argument.raw.strip().strip("'\"")
    for group, option in wholes:
        choices.setdefault(group, option)
    return choices, problems


def spelled_out(override: str) -> list[str]:
    """What Hydra itself is told in place of `data/source=[a,b]`: it puts options of one group at one place, unless told otherwise."""
    key, _, raw = override.partition("=")
    group, at, package = key.lstrip("+").partition("@")
    several = SEVERAL.get(group)
    if several is None or several.whole is None or not (raw.startswith("[") and raw.endswith("]")):
        return [override]
    if at and f"{group}@{package}" != several.key:
        return [override]
    chosen = [option.strip() for option in raw[1:-1].split(",") if option.strip()]
    return ["=".join(several.whole), *(f"+{several.key}.{option}={option}" for option in chosen)]


def adds(key: str) -> bool:
    """`data/source@data.sources.mine`: one more, under a name of the user's."""
    return any(key.startswith(f"{_placed(several)}.") for several in SEVERAL.values())


def _placed(several: Several) -> str:
    return several.key if "@" in several.key else f"{several.key}@{several.place or several.key.replace('/', '.')}"


def _wrong_list(argument: Argument, known: Sequence[str], folders: Sequence[Path]) -> Problem | None:
    chosen = [str(item) for item in argument.value]
    if len(set(chosen)) < len(chosen):
        once = ",".join(dict.fromkeys(chosen))
        reason = "names an option twice; each is known by its name, so a second one needs a file of its own in --config-dir"
        return Problem(argument.group_key, chosen, reason, f"'{argument.group_key}=[{once}]'")
    for option in chosen:
        problem = _wrong(replace(argument, raw=option, value=option), known, folders)
        if problem is not None:
            better = (problem.repair or "").partition("=")[2]
            mended = ",".join(better if one == option else one for one in chosen)
            return replace(problem, repair=f"'{argument.group_key}=[{mended}]'" if better else None)
    return None


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
    repair = f"{shown}={near or _usual(group, choices)}"
    return Problem(shown, option, f"is no option of {group}: {meant}there are {listed}", repair)


def _usual(group: str, choices: Sequence[str]) -> str:
    """What the main job has, where that is one of them; else none of them, or any."""
    entries = yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    usual = {key: str(option) for entry in entries if isinstance(entry, dict) for key, option in entry.items()}
    return next((option for option in (usual.get(group, "none"), "none") if option in choices), choices[0])


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
