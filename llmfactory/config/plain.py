"""Specs to and from plain data: what is saved, sent to workers and compared. Nothing is lost on the way.

A `type` key names the option class where it is not the one that the field declares; Enums are their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from llmfactory.config.fields import Type, WrongType, convert, default, field_types
from llmfactory.config.register import class_of, group_of, packages
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import MISSING, Spec, stem

TYPE = "type"


def to_plain(spec: Spec, declared: type[Spec] | None = None) -> dict[str, Any]:
    """Plain data of a spec, in field order. `declared`: the class that its place declares; None: its own."""
    plain: dict[str, Any] = {}
    if declared is not None and type(spec) is not declared:
        plain[TYPE] = stem(type(spec))
    for name, kind in field_types(type(spec)).items():
        plain[name] = _value_to_plain(getattr(spec, name), kind)
    return plain


def _value_to_plain(value: Any, kind: Type | None) -> Any:
    if isinstance(value, Spec):
        return to_plain(value, kind.base if kind else None)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_value_to_plain(item, kind.item if kind else None) for item in value]
    if isinstance(value, Mapping):
        return {key: _value_to_plain(item, kind.item if kind else None) for key, item in value.items()}
    return value


def from_plain(plain: Mapping[str, Any]) -> Job:
    """The job of plain data, checked by its specs. Raises ConfigError."""
    spec = spec_from_plain(plain, Job, packages(plugins=plain.get("plugins") or ()))
    assert isinstance(spec, Job)
    return spec


def spec_from_plain(plain: Mapping[str, Any], declared: type[Spec], names: tuple[str, ...], path: str = "") -> Spec:
    """A spec where `declared` is declared; `names` are the packages to look for classes in."""
    if not isinstance(plain, Mapping):
        raise ConfigError([Problem(path, plain, f"must be the fields of {declared.__name__}")])
    cls, problems = declared, []
    if TYPE in plain and TYPE not in field_types(declared):
        group = group_of(declared)
        found = class_of(group, str(plain[TYPE]), names)
        if found is None or not issubclass(found, declared):
            reason = f"no class of {group} has that name; a package of your own must be named in plugins"
            raise ConfigError([Problem(f"{path}.{TYPE}", plain[TYPE], reason)])
        cls = found
    values: dict[str, Any] = {}
    types = field_types(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in plain:
        if key not in types and key != TYPE:
            problems.append(Problem(f"{path}.{key}".lstrip("."), plain[key], f"{cls.__name__} has no such field"))
    for name, kind in types.items():
        here = f"{path}.{name}".lstrip(".")
        value = plain.get(name, MISSING) if name in plain else default(fields[name])
        if value == MISSING:
            problems.append(Problem(here, MISSING, "must be given"))
            continue
        try:
            values[name] = _value_from_plain(value, kind, names, here)
        except WrongType as error:
            problems.append(Problem(here, value, error.reason))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError([problem.below(path) for problem in error.problems]) from error


def _value_from_plain(value: Any, kind: Type, names: tuple[str, ...], path: str) -> Any:
    if kind.is_spec and not isinstance(value, Spec) and not (value is None and kind.optional):
        return spec_from_plain(value, kind.base, names, path)
    if kind.item is not None and kind.item.is_spec and isinstance(value, Mapping):
        return {key: _value_from_plain(item, kind.item, names, f"{path}.{key}") for key, item in value.items()}
    if kind.is_spec:
        return value
    return convert(kind, value)
