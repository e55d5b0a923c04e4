"""The config while it is being put together: a tree of typed branches, each value with the place it came from.

Schemas, preset files and command-line overrides all go through `assign`, so a key that does not exist is found in whichever
of them it stands. Nothing is raised: problems are collected, and the nearest right key is looked for when the tree is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfactory.config.arguments import override
from llmfactory.config.fields import Type, WrongType, convert, default, field_types
from llmfactory.config.register import group_of, options
from llmfactory.core.errors import Problem
from llmfactory.core.spec import MISSING, Spec, stem

COMMAND_LINE = "command line"


@dataclass(slots=True)
class Branch:
    """A spec that is not built yet."""

    cls: type[Spec]
    origin: str
    """What chose the class."""
    values: dict[str, Any]
    """Each field's value: a Branch, a dict of branches, plain data, or MISSING."""
    origins: dict[str, str]
    """What set each field."""

    @classmethod
    def of(cls, spec: type[Spec], origin: str) -> Branch:
        values = {item.name: default(item) for item in dataclasses.fields(spec)}
        return cls(spec, origin, values, dict.fromkeys(values, "default"))

    @property
    def types(self) -> dict[str, Type]:
        return field_types(self.cls)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A key that leads nowhere."""

    path: str
    value: Any
    origin: str
    inside: type[Spec]
    """The class that has no such field."""


@dataclass(slots=True)
class Tree:
    """The whole config, and what was wrong with what was put into it."""

    root: Branch
    folders: Sequence[Path] | None = None
    """Of options, for messages; None: ours."""
    problems: list[Problem] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)

    def place(self, path: str, cls: type[Spec], origin: str) -> None:
        """Put a fresh branch of a class at a path; values without a default there stay."""
        fresh = Branch.of(cls, origin)
        if not path:
            before, self.root = self.root, fresh
            self._keep(fresh, before)
            return
        parent, _, name = path.rpartition(".")
        holder: Any = self.find(parent)
        kind = self.type_at(path)
        entries = holder.values if isinstance(holder, Branch) else holder
        if kind is None or not isinstance(entries, dict):
            inside = holder.cls if isinstance(holder, Branch) else Spec
            self.unknown.append(Unknown(path, stem(cls), origin, inside))
            return
        if not kind.is_spec or not issubclass(cls, kind.base):
            self.problems.append(Problem(path, stem(cls), f"{origin} puts {cls.__name__} here, but it must be {kind.expected()}"))
            return
        old = entries.get(name)
        if isinstance(old, Branch):
            if not issubclass(cls, old.cls):
                reason = f"{origin} puts {cls.__name__} where {old.origin} put {old.cls.__name__}: a part has one type"
                self.problems.append(Problem(path, stem(cls), reason))
                return
            self._keep(fresh, old)
        entries[name] = fresh
        if isinstance(holder, Branch):
            holder.origins[name] = origin

    def entry(self, path: str, option: str) -> str:
        """Where an option that goes to a path is put: into a mapping of parts, under its own name."""
        kind = self.type_at(path) if path else None
        into_mapping = kind is not None and kind.base is dict and kind.item is not None and kind.item.is_spec
        return f"{path}.{option}" if into_mapping else path

    @staticmethod
    def _keep(fresh: Branch, old: Branch) -> None:
        for name, value in old.values.items():
            if name in fresh.values and fresh.values[name] is MISSING:
                fresh.values[name], fresh.origins[name] = value, old.origins[name]

    def find(self, path: str) -> Any:
        """The branch, dict of branches or value at a path; None: there is none."""
        here: Any = self.root
        for name in path.split(".") if path else []:
            if isinstance(here, Branch):
                here = here.values.get(name)
            elif isinstance(here, dict):
                here = here.get(name)
            else:
                return None
        return here

    def type_at(self, path: str) -> Type | None:
        """Declared type at a path; None: no such key."""
        parent, _, name = path.rpartition(".")
        holder = self.find(parent)
        if isinstance(holder, Branch):
            return holder.types.get(name)
        if isinstance(holder, dict) and parent:
            above = self.type_at(parent)
            return above.item if above else None
        return None

    def merge(self, path: str, body: dict[Any, Any], origin: str) -> None:
        """Put a file's body at a path."""
        for key, value in body.items():
            self.assign(f"{path}.{key}" if path else str(key), value, origin)

    def assign(self, path: str, value: Any, origin: str, literal: bool = False) -> None:
        """Set a key. A mapping is merged into a branch. `literal`: `${...}` in the value is text."""
        here, seen = self.root, ""
        names = path.split(".")
        for depth, name in enumerate(names):
            seen = f"{seen}.{name}" if seen else name
            kind = here.types.get(name)
            if kind is None:
                self.unknown.append(Unknown(path, value, origin, here.cls))
                return
            rest = names[depth + 1 :]
            if kind.base is dict and kind.item is not None and rest:
                self._assign_entry(here, name, kind, seen, rest, value, origin, literal)
                return
            if kind.base is dict and kind.item is not None and kind.item.is_spec and isinstance(value, dict):
                self.merge(path, value, origin)
                return
            if not kind.is_spec:
                if rest:
                    self.unknown.append(Unknown(path, value, origin, here.cls))
                else:
                    self._assign_leaf(here, name, kind, path, value, origin, literal)
                return
            inner = here.values[name]
            if not isinstance(inner, Branch):
                self._no_type_yet(path, value, seen, kind)
                return
            here = inner
        if isinstance(value, dict):
            self.merge(path, value, origin)
        else:
            self.problems.append(type_by_group(path, value, here.cls, self.folders))

    def _assign_entry(
        self, holder: Branch, name: str, kind: Type, seen: str, rest: list[str], value: Any, origin: str, literal: bool
    ) -> None:
        """Below a mapping of names: to a part of its own, or to a value."""
        assert kind.item is not None
        entries = holder.values[name]
        path = ".".join([seen, *rest])
        if kind.item.is_spec:
            inner = entries.get(rest[0]) if isinstance(entries, dict) else None
            if isinstance(inner, Branch):
                below = Tree(inner, self.folders)
                if len(rest) > 1:
                    below.assign(".".join(rest[1:]), value, origin, literal)
                elif isinstance(value, dict):
                    below.merge("", value, origin)
                else:
                    below.problems.append(type_by_group("", value, inner.cls, self.folders))
                prefix = f"{seen}.{rest[0]}"
                self.problems += [problem.below(prefix) for problem in below.problems]
                self.unknown += [dataclasses.replace(item, path=f"{prefix}.{item.path}") for item in below.unknown]
            else:
                self._no_type_yet(path, value, f"{seen}.{rest[0]}", kind.item)
            return
        entries = dict(entries) if isinstance(entries, dict) else {}
        try:
            entries[".".join(rest)] = convert(kind.item, value)
            holder.values[name], holder.origins[name] = entries, origin
        except WrongType as error:
            self.problems.append(Problem(path, value, error.reason, self._repair(path, kind.item, error)))

    def _assign_leaf(self, holder: Branch, name: str, kind: Type, path: str, value: Any, origin: str, literal: bool) -> None:
        if isinstance(value, str) and value == MISSING:
            return
        if isinstance(value, str) and "${" in value and not literal:
            holder.values[name], holder.origins[name] = Reference(value), origin
            return
        try:
            new = convert(kind, value)
        except WrongType as error:
            where = "" if origin == COMMAND_LINE else f" ({origin} says so)"
            self.problems.append(Problem(path, value, error.reason + where, self._repair(path, kind, error)))
            if origin == COMMAND_LINE:
                return
            new = WRONG
        old = holder.values[name]
        if kind.base is dict and isinstance(new, dict) and isinstance(old, dict):
            new = {**old, **new}
        holder.values[name], holder.origins[name] = new, origin

    def _repair(self, path: str, kind: Type, error: WrongType) -> str:
        """What was meant, or the value that the key has had so far, or any of the right type."""
        old = self.find(path)
        one_of_several = kind.base is list and isinstance(old, list) and len(old) > 1
        if error.better is not None and not one_of_several:
            return f"{path}={error.better}"
        try:
            if old is MISSING:
                raise WrongType("there is none yet")
            return override(path, convert(kind, old))
        except WrongType:
            return f"{path}={kind.example()}"

    def _no_type_yet(self, path: str, value: Any, at: str, kind: Type) -> None:
        reason = f"nothing is chosen for {at} yet, so it has no fields"
        self.problems.append(Problem(path, value, reason))

    def leaves(self, branch: Branch | None = None, path: str = "") -> Iterator[tuple[str, Type, Any, str]]:
        """(key, type, value, origin) of every value that is no branch."""
        branch = branch or self.root
        for name, kind in branch.types.items():
            key = f"{path}.{name}" if path else name
            value = branch.values[name]
            if isinstance(value, Branch):
                yield from self.leaves(value, key)
            elif isinstance(value, dict) and any(isinstance(item, Branch) for item in value.values()):
                for entry, item in value.items():
                    yield from self.leaves(item, f"{key}.{entry}")
            else:
                yield key, kind, value, branch.origins[name]

    def branches(self, branch: Branch | None = None, path: str = "") -> Iterator[tuple[str, Branch]]:
        """Every branch with its key, parents first."""
        branch = branch or self.root
        yield path, branch
        for name, value in branch.values.items():
            key = f"{path}.{name}" if path else name
            if isinstance(value, Branch):
                yield from self.branches(value, key)
            elif isinstance(value, dict):
                for entry, item in value.items():
                    if isinstance(item, Branch):
                        yield from self.branches(item, f"{key}.{entry}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A text with `${...}` in it, to be filled in when the tree is whole."""

    text: str


WRONG = object()
"""Stands where a file gave a value of the wrong type, which has been reported."""


def type_by_group(path: str, value: Any, cls: type[Spec], folders: Sequence[Path] | None) -> Problem:
    """Somebody set a part as if it were a value."""
    group = group_of(cls)
    choices = options(group, folders)
    name = value if isinstance(value, str) and value in choices else None
    repair = f"{override_key(group, path)}={name or choices[0]}" if choices else None
    return Problem(path, value, f"a part's type is chosen through its group, {group}: {', '.join(choices)}", repair)


def override_key(group: str, path: str) -> str:
    """How a group is named in an override: with its place where that is not the usual one."""
    return group if group.replace("/", ".") == path else f"{group}@{path}"
