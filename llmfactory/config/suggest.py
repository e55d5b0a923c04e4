"""What a key that does not exist was probably meant to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmfactory.config.arguments import override
from llmfactory.config.fields import Type, WrongType, convert, distance, field_types, nearest
from llmfactory.config.names import FOREIGN, OTHERWISE
from llmfactory.config.register import classes, group_of, options
from llmfactory.config.tree import COMMAND_LINE, Branch, Tree, Unknown, override_key
from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec

KEYWORDS = ("type", "_target_", "_recursive_", "_partial_", "_convert_")
"""Keys that name a class in other configs (and in our own saved ones)."""


def unknown_key(item: Unknown, tree: Tree, groups: Sequence[str], folders: Sequence[Path]) -> Problem:
    """A message for a key that leads nowhere, with the nearest right one."""
    where = "" if item.origin == COMMAND_LINE else f" (it stands in {item.origin})"
    leaf = item.path.rpartition(".")[2]
    if leaf in KEYWORDS:
        return _type_key(item, tree, folders, where)
    keys = {key: kind for key, kind, _, _ in tree.leaves()}
    group = _group_meant(item, groups, folders)
    if group is not None:
        return Problem(item.path, item.value, f"is no key; a part is chosen through its group{where}", group)
    foreign = FOREIGN.get(item.path, FOREIGN.get(leaf))
    if foreign is not None:
        problem = _foreign(item, foreign, keys, tree, folders, where)
        if problem is not None:
            return problem
    other = _of_another_option(item, folders, where)
    if other is not None:
        return other
    key = nearest_key(item.path, list(keys))
    if key is None or key.rpartition(".")[0] != item.path.rpartition(".")[0]:
        part = _part_meant(item, tree, groups, folders)
        if part is not None:
            return part
    if key is not None:
        reason = f"no such key{where}: did you mean {key}?"
        return Problem(item.path, item.value, reason, _with_value(key, keys[key], item.value))
    fields = ", ".join(field.name for field in dataclasses.fields(item.inside))
    return Problem(item.path, item.value, f"no such key{where}: {item.inside.__name__} has {fields or 'no fields'}")


def _part_meant(item: Unknown, tree: Tree, groups: Sequence[str], folders: Sequence[Path]) -> Problem | None:
    """`trainer.precision=bf16`, `modle=3`: the last word is that of a part, whose type is chosen through its group."""
    leaf = item.path.rpartition(".")[2]
    parts = {path.rpartition(".")[2]: (path, branch) for path, branch in reversed(list(tree.branches())) if path}
    name = nearest(leaf, list(parts))
    if name is None:
        return None
    path, branch = parts[name]
    group = group_of(branch.cls)
    if group not in groups:
        return None
    choices = options(group, folders)
    choice = nearest(str(item.value), choices)
    key = override_key(group, path)
    reason = f"no such key: did you mean {path}? It is a part, chosen by {key}={choice or choices[0]}, with fields of its own"
    return Problem(item.path, item.value, reason, None if choice is None else f"{key}={choice}")


def nearest_key(path: str, keys: Sequence[str]) -> str | None:
    """The key that a misspelt one means: the same place with one wrong word, or the same last word at another place."""
    parent, _, leaf = path.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    found = nearest(leaf, list(beside))
    if found is not None:
        return beside[found]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    if same_leaf:
        return min(same_leaf, key=lambda key: (key.count("."), distance(key, path)))
    leaves = {key.rpartition(".")[2]: key for key in sorted(keys, key=lambda key: -key.count("."))}
    found = nearest(leaf, list(leaves))
    return leaves[found] if found is not None else None


def _with_value(key: str, kind: Type, value: Any) -> str:
    """The override of the right key: with the value given, if it fits there."""
    try:
        convert(kind, value)
    except WrongType as error:
        return f"{key}={error.better or kind.example()}"
    return override(key, value)


def _foreign(
    item: Unknown, meaning: str, keys: Mapping[str, Type], tree: Tree, folders: Sequence[Path], where: str
) -> Problem | None:
    """A name from another program."""
    if " " in meaning:
        sentence, _, repair = meaning.rpartition(": ")
        group = repair.partition("=")[0]
        if " " not in repair and item.value in options(group, folders):
            repair = f"{group}={item.value}"
        return Problem(item.path, item.value, f"is called otherwise here{where}: {sentence}", repair)
    if "=" in meaning:
        return Problem(item.path, item.value, f"is called otherwise here{where}: {meaning}", meaning)
    if meaning not in keys:  # a key of an option that is not chosen
        place, _, leaf = meaning.rpartition(".")
        branch = tree.find(place)
        choice = _choice_having(leaf, place, branch.cls, folders, item.path) if isinstance(branch, Branch) else None
        if choice is None:
            return None
        return Problem(
            item.path, item.value, f"is called {meaning} here, with {choice}{where}", f"{choice} {override(meaning, item.value)}"
        )
    repair = _with_value(meaning, keys[meaning], item.value)
    if meaning in OTHERWISE:
        repair += f" {OTHERWISE[meaning]}"
    return Problem(item.path, item.value, f"is called {meaning} here{where}", repair)


def _group_meant(item: Unknown, groups: Sequence[str], folders: Sequence[Path]) -> str | None:
    """`modle=llama_tiny`, `attention=gqa`, `model.attn=gqa`: the value is an option of a group with a name like that."""
    if not isinstance(item.value, str):
        return None
    path = item.path.replace(".", "/")
    having = [group for group in groups if item.value in options(group, folders)]
    near = nearest(path, having)
    if near is None:
        leaves = {group.rpartition("/")[2]: group for group in having}
        found = nearest(path.rpartition("/")[2], list(leaves))
        near = leaves[found] if found is not None else None
    return f"{near}={item.value}" if near is not None else None


def _of_another_option(item: Unknown, folders: Sequence[Path], where: str) -> Problem | None:
    """The key of an option of the same group that is not chosen: `stage.prompt` while stage=pretrain."""
    place, _, leaf = item.path.rpartition(".")
    choice = _choice_having(leaf, place, item.inside, folders) if place else None
    if choice is None:
        return None
    reason = f"no such key{where}: {item.inside.__name__} has none of that name, {choice} has"
    return Problem(item.path, item.value, reason, f"{choice} {override(item.path, item.value)}")


def _choice_having(field: str, place: str, cls: type[Spec], folders: Sequence[Path], said: str = "") -> str | None:
    """The override that chooses an option with such a field instead of one of class `cls`; None: no option has it. Where several
    have it, the one whose name stands in what was `said`."""
    group = group_of(cls)
    listed = options(group, folders)
    having = [name for name, other in classes(group).items() if field in field_types(other) and name in listed]
    choice = min(having, key=lambda name: name not in said, default=None)
    return None if choice is None else f"{override_key(group, place)}={choice}"


def _type_key(item: Unknown, tree: Tree, folders: Sequence[Path], where: str) -> Problem:
    """Somebody chose a class by a key."""
    parent, _, leaf = item.path.rpartition(".")
    holder = tree.find(parent)
    reason = f"{leaf} is no key{where}: types are chosen by the group"
    if not isinstance(holder, Branch) or not parent:
        return Problem(item.path, item.value, reason)
    group = group_of(holder.cls)
    choices = options(group, folders)
    if not choices:
        return Problem(item.path, item.value, reason)
    choice = nearest(str(item.value).rpartition(".")[2], choices) or choices[0]
    reason += f", {group}: {', '.join(choices)}"
    return Problem(item.path, item.value, reason, f"{override_key(group, parent)}={choice}")
