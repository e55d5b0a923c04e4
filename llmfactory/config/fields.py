"""Types of spec fields: what a value must be, how YAML's spelling of it is read, and how to say what was expected.

A field is a bool, int, float, str, Enum, a spec, a list or a dict (with text keys) of one of these, or Any; each may be
`| None`. No value is bent: 1.5 is no int, "yes" is no bool. An int is a float, though, and a number a text.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llmfactory.core.spec import MISSING, Spec


@dataclass(frozen=True, slots=True)
class Type:
    """The declared type of a field or of an item."""

    base: Any
    """bool, int, float, str, Any, an Enum, a Spec class, list or dict."""
    optional: bool = False
    item: Type | None = None
    """Of the items of a list or dict."""

    @property
    def is_spec(self) -> bool:
        return isinstance(self.base, type) and issubclass(self.base, Spec)

    @property
    def is_enum(self) -> bool:
        return isinstance(self.base, type) and issubclass(self.base, Enum)

    def expected(self) -> str:
        """In words."""
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Any: "anything"}
        if self.is_enum:
            text = "one of " + ", ".join(member.name for member in self.base)
        elif self.base is list and self.item:
            text = f"a list, each item {self.item.expected()}"
        elif self.base is dict and self.item:
            text = f"a mapping of names, each to {self.item.expected()}"
        elif self.is_spec:
            text = f"the fields of {self.base.__name__}"
        else:
            text = words[self.base]
        return f"{text}, or null" if self.optional else text

    def example(self) -> str:
        """Some value of this type, as typed on a command line."""
        if self.is_enum:
            return str(next(iter(self.base)).name)
        if self.base is list and self.item:
            return f"[{self.item.example()}]"
        if self.base is dict and self.item:
            return f"{{name:{self.item.example()}}}"
        return {bool: "true", int: "1", float: "1.0"}.get(self.base, "text")


class WrongType(Exception):
    """A value that is not of the field's type."""

    def __init__(self, reason: str, better: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.better = better
        """The value that was probably meant, as typed on a command line; None: no telling."""


def parse_type(annotation: Any) -> Type:
    """Of an evaluated annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) != 1 or len(inner) == len(arguments):
            raise TypeError(f"{annotation}: a union of types is a config group with one class each")
        return dataclasses.replace(parse_type(inner[0]), optional=True)
    if origin is list:
        return Type(list, item=parse_type(arguments[0]))
    if origin is dict and arguments[0] is str:
        return Type(dict, item=parse_type(arguments[1]))
    if annotation in (bool, int, float, str, Any):
        return Type(annotation)
    if isinstance(annotation, type) and issubclass(annotation, (Spec, Enum)):
        return Type(annotation)
    raise TypeError(f"{annotation} is no type of a spec field")


def field_types(cls: type[Any]) -> dict[str, Type]:
    """Declared type of each field."""
    if cls not in _TYPES:
        hints = typing.get_type_hints(cls)
        _TYPES[cls] = {field.name: parse_type(hints[field.name]) for field in dataclasses.fields(cls)}
    return _TYPES[cls]


_TYPES: dict[type[Any], dict[str, Type]] = {}


def default(field: dataclasses.Field[Any]) -> Any:
    """A fresh default, or MISSING."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING


def convert(kind: Type, value: Any) -> Any:
    """The value as the field wants it (an Enum's member for its name). Raises WrongType."""
    if value is None:
        if kind.optional or kind.base is Any:
            return None
        raise WrongType(f"cannot be null: it is {kind.expected()}")
    if kind.base is Any:
        return value
    if kind.is_enum:
        return _member(kind, value)
    if kind.base is list and kind.item is not None and isinstance(value, list):
        return [convert(kind.item, item) for item in value]
    if kind.base is dict and kind.item is not None and isinstance(value, dict):
        return {str(key): convert(kind.item, item) for key, item in value.items()}
    if kind.base is str and type(value) in (str, int, float):
        return str(value)
    if kind.base is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind.base in (bool, int) and type(value) is kind.base:
        return value
    raise WrongType(f"must be {kind.expected()}, not {_described(value)}", _better(kind, value))


def _member(kind: Type, value: Any) -> Enum:
    if isinstance(value, kind.base):
        return value  # type: ignore[no-any-return]
    # YAML reads on, off, yes and no as booleans.
    name = value if isinstance(value, str) else str(value).lower()
    if name in kind.base.__members__:
        return kind.base[name]  # type: ignore[no-any-return]
    choices = "; ".join(f"{member.name} ({member.value})" for member in kind.base)
    raise WrongType(f"must be one of {choices}", _meant(name, list(kind.base.__members__)))


ALSO_CALLED = {"gpu": "cuda", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
"""What other programs call some of our names."""


def _meant(name: str, members: list[str]) -> str | None:
    other = ALSO_CALLED.get(name)
    return other if other in members else nearest(name, members)


def _described(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping"}
    if isinstance(value, float) and not math.isfinite(value):
        return "one that is infinite or none at all"
    return names.get(type(value), type(value).__name__)


def _better(kind: Type, value: Any) -> str | None:
    """What may have been meant."""
    if kind.base is list and kind.item is not None and not isinstance(value, (list, dict)):
        try:
            return f"[{convert(kind.item, value)}]"
        except WrongType:
            return None
    if kind.base is int and isinstance(value, float) and math.isfinite(value):
        return str(round(value))
    if kind.base is bool:
        if str(value).lower() in ("no", "off", "0", "none", "never", "disabled"):
            return "false"
        return "true" if isinstance(value, str) or value == 1 else None  # a word says how: full, inductor
    return None


def distance(a: str, b: str) -> int:
    """Least number of inserted, dropped, replaced or swapped neighboring letters between two words (Damerau 1964)."""
    rows = [list(range(len(b) + 1))]
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, words: list[str]) -> str | None:
    """The word that a misspelt one was probably meant to be; None: nothing is near."""

    def measure(candidate: str) -> float:
        a, b = word.lower().replace("-", "_"), candidate.lower()
        if a == b:
            return 0.0
        whole = distance(a, b) / max(len(a), len(b))
        if len(a) < 3:
            return whole
        starts = (b[: len(a) + more] for more in (-1, 0, 1))  # lama for llama_tiny
        return min(whole, (0.5 + min(distance(a, start) for start in starts)) / len(a))

    if len(word) <= 3:  # two changes make any short word of another
        words = [candidate for candidate in words if distance(word.lower(), candidate.lower()) <= 1]
    scored = sorted((measure(candidate), number) for number, candidate in enumerate(words))
    return words[scored[0][1]] if scored and scored[0][0] <= 0.4 else None
