"""The base of every config dataclass.

A spec is plain data: no torch, no lightning, no hydra is imported to make one, so that help, completion and every config
error answer in about a second. What a spec describes is built by its `build` method, which imports its class inside.

Conventions: `@dataclass(kw_only=True, slots=True)`; a docstring under each field with its unit and the meaning of None;
numbers that define an architecture have no default (a preset must state them); one object checks itself in `problems`,
several together are checked in `config/rules.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmfactory.core.errors import ConfigError, Problem

MISSING = "???"
"""How YAML and OmegaConf write a value that must be given."""


@dataclass(kw_only=True, slots=True)
class Spec:
    """Base of all specs. Construction runs `problems` and raises `ConfigError` with everything it yields."""

    def __post_init__(self) -> None:
        found = list(self.problems())
        if found:
            raise ConfigError(found)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this object alone, with paths relative to it. Overridden by leaves."""
        yield from ()

    def small(self, scale: float) -> dict[str, Any]:
        """Values of fields at laptop size (`toy=true`), parts within aside; `scale` is the factor of the model's width.

        What makes an architecture itself stays: ratios, patterns, ties.
        """
        return {}


def at_least(spec: Spec, low: float, *names: str) -> Iterator[Problem]:
    """Problems of those fields that are below `low`; None passes."""
    for name in names:
        value = getattr(spec, name)
        if value is not None and value < low:
            yield Problem(name, value, f"must be at least {low}", f"{name}={low}")


def above(spec: Spec, low: float, *names: str, repair: float) -> Iterator[Problem]:
    """Problems of those fields that are not greater than `low`; None passes."""
    for name in names:
        value = getattr(spec, name)
        if value is not None and not value > low:
            yield Problem(name, value, f"must be greater than {low}", f"{name}={repair}")


def between(spec: Spec, low: float, high: float, *names: str) -> Iterator[Problem]:
    """Problems of those fields outside [low, high]; None passes."""
    for name in names:
        value = getattr(spec, name)
        if value is not None and not low <= value <= high:
            nearest = low if value < low else high
            yield Problem(name, value, f"must lie between {low} and {high}", f"{name}={nearest}")


def walk(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """Every spec of the tree with its dotted path, parents first; the root's path is empty."""
    yield prefix, spec
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        path = f"{prefix}.{field.name}" if prefix else field.name
        if isinstance(value, Spec):
            yield from walk(value, path)
        elif isinstance(value, (list, dict)):
            items: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                if isinstance(item, Spec):
                    yield from walk(item, f"{path}.{key}")


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring line under each field of a spec class, inherited ones included, read from the source."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (dataclasses.is_dataclass(base) and base.__module__ in sys.modules):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for here, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(here, ast.AnnAssign)
                and isinstance(here.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[here.target.id] = inspect.cleandoc(after.value.value)
    return docs


def stem(cls: type) -> str:
    """The option name of a spec class: `RmsNorm` -> `rms_norm`, `QFormer` -> `q_former`; a trailing underscore (`None_`) is dropped."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower().rstrip("_")
