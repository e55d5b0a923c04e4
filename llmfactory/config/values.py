"""Overrides that set values: what a single job cannot take, and the rest put into the tree."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmfactory.config.arguments import Argument, override
from llmfactory.config.fields import Type, WrongType, convert
from llmfactory.config.tree import COMMAND_LINE, Branch, Reference, Tree
from llmfactory.core.errors import Problem


def plugins_of(arguments: Sequence[Argument]) -> list[str]:
    """Packages that `plugins=[...]` names; they must be known before anything is composed."""
    found = [argument.value for argument in arguments if argument.key == "plugins"]
    value = found[-1] if found else []
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def refused(argument: Argument) -> list[Problem]:
    """Overrides that a single job cannot take."""
    if argument.is_hydras:
        if argument.key in ("hydra.run.dir", "hydra.sweep.dir"):
            reason = "the run folder is <output_dir>/<name>"
            return [Problem(argument.key, argument.raw, reason, override("output_dir", argument.raw or "outputs"))]
        if argument.key == "hydra.searchpath":
            return [Problem(argument.key, argument.raw, "folders of options are given as --config-dir FOLDER")]
        return [Problem(argument.key, argument.raw, "Hydra's own settings take effect in sweeps only: add -m")]
    if argument.sweeps:
        quoted = override(argument.group_key, argument.raw)
        first = argument.raw.partition(",")[0]
        one = (first.isidentifier() or first.replace(".", "").isdigit()) and ", " not in argument.raw
        plain = f"{argument.group_key}={first}" if one else quoted
        reason = "several values are a sweep: add -m; a list is written in [brackets], a text with a comma in 'quotes'"
        return [Problem(argument.key, argument.raw, reason, plain)]
    return []


def put(tree: Tree, argument: Argument) -> None:
    """One value of the command line."""
    kind = tree.type_at(argument.key)
    if argument.deletes and kind is not None:
        tree.problems.append(_deleted(tree, argument, kind))
        return
    if kind is not None and kind.base is str:
        tree.assign(argument.key, argument.text_value, COMMAND_LINE, literal=argument.unread is not None)
        return
    if argument.unread is not None:
        if kind is None:
            tree.assign(argument.key, argument.raw, COMMAND_LINE, literal=True)
        else:
            reason = f"cannot be read ({argument.unread}); it must be {kind.expected()}"
            tree.problems.append(Problem(argument.key, argument.raw, reason, _readable(argument, kind)))
        return
    tree.assign(argument.key, argument.value, COMMAND_LINE)


def _readable(argument: Argument, kind: Type) -> str:
    """The same list with its texts in quotes, or any value of the right type."""
    raw = argument.raw.strip()
    if kind.base is list and kind.item is not None and kind.item.base is str and raw.startswith("[") and raw.endswith("]"):
        return override(argument.key, [item.strip().strip("'\"") for item in raw[1:-1].split(",")])
    return f"{argument.key}={kind.example()}"


def _deleted(tree: Tree, argument: Argument, kind: Type) -> Problem:
    reason = "a field cannot be taken away"
    if kind.optional:
        return Problem(argument.key, "~", f"{reason}; null switches it off", f"{argument.key}=null")
    value = tree.find(argument.key)
    return Problem(
        argument.key, "~", f"{reason}, only changed", None if isinstance(value, Branch) else override(argument.key, value)
    )


def resolve(tree: Tree) -> None:
    """Fill in `${...}`."""
    references = [(key, kind, value) for key, kind, value, _ in tree.leaves() if isinstance(value, Reference)]
    if not references:
        return
    known = OmegaConf.create({})
    for key, _, value, _ in tree.leaves():
        plain = value.text if isinstance(value, Reference) else _plain(value)
        OmegaConf.update(known, key, plain, force_add=True)
    for key, kind, reference in references:
        parent, _, name = key.rpartition(".")
        holder = tree.find(parent)
        try:
            holder.values[name] = convert(kind, OmegaConf.select(known, key, throw_on_missing=True))
        except WrongType as error:
            tree.problems.append(Problem(key, reference.text, error.reason, f"{key}={error.better or kind.example()}"))
        except OmegaConfBaseException as error:
            reason = f"cannot be filled in: {str(error).splitlines()[0]}"
            tree.problems.append(Problem(key, reference.text, reason, f"{key}={kind.example()}"))


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
