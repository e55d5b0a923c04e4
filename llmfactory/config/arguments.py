"""Command-line overrides, read with Hydra's own grammar.

`model/attention=mla` chooses an option of a group, `optim.lr=1e-3` sets a value. `+key` and `++key` are the same as `key`:
nothing can be added that a spec does not have. What the grammar cannot read is kept as it was typed, for it is the value of
a text (`stage.prompt=def read(`) or a mistake, and only the tree knows which.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from llmfactory.core.errors import Problem


@dataclass(frozen=True, slots=True)
class Argument:
    """One override."""

    text: str
    """As typed."""
    key: str
    """Without `+`, `++`, `~` and `@package`."""
    raw: str
    """What stands behind the `=`, as typed."""
    value: Any = None
    """What the grammar reads there."""
    package: str | None = None
    """Behind the `@`."""
    deletes: bool = False
    """`~key`."""
    quoted: bool = False
    """The value is a text in quotes."""
    sweeps: bool = False
    """The value is several values: a list without brackets, choice(), range(), interval(), glob()."""
    unread: str | None = None
    """Why the grammar cannot read the value; None: it can."""

    @property
    def group_key(self) -> str:
        return f"{self.key}@{self.package}" if self.package else self.key

    @property
    def is_hydras(self) -> bool:
        """Whether it is about Hydra itself."""
        return self.key.startswith(("hydra.", "hydra/"))

    @property
    def text_value(self) -> str | None:
        """The value of a key that holds a text: as typed unless it is quoted; None for null."""
        if self.unread is None and self.value is None and self.raw.strip() == "null":
            return None
        if self.unread is None and (self.quoted or isinstance(self.value, str)):
            return str(self.value)
        return self.raw


_KEY = re.compile(r"(?P<mark>\+\+|\+|~)?(?P<key>\w[\w./:-]*?)(?:@(?P<package>[\w.]+))?(?:=(?P<raw>.*))?", re.DOTALL)


def parse(overrides: Sequence[str]) -> tuple[list[Argument], list[Problem]]:
    """Read all overrides."""
    parser, read, problems = OverridesParser.create(), [], []
    for text in overrides:
        match = _KEY.fullmatch(text)
        if match is None or (match["raw"] is None and match["mark"] != "~"):
            problems.append(_no_override(text))
            continue
        raw = match["raw"] or ""
        if ".." in match["key"] or match["key"].endswith("."):
            key = re.sub(r"\.+", ".", match["key"]).strip(".")
            problems.append(Problem(match["key"], raw, "has a dot too many", shlex.quote(f"{key}={raw}")))
            continue
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            why = str(error).splitlines()[0]
            read.append(Argument(text, match["key"], raw, package=match["package"], unread=why))
        else:
            read.append(_argument(override, text, raw))
    return read, problems


def _argument(override: Override, text: str, raw: str) -> Argument:
    sweeps = override.is_sweep_override()
    return Argument(
        text=text,
        key=override.key_or_group,
        raw=raw,
        value=None if sweeps else override.value(),
        package=override.package,
        deletes=override.is_delete(),
        quoted=isinstance(override._value, QuotedString),
        sweeps=sweeps,
    )


def _no_override(text: str) -> Problem:
    """No `key=value` at all."""
    dashed = re.fullmatch(r"--?([\w.-]+)(?:=(.*))?", text, re.DOTALL)
    if dashed:
        name = dashed[1].replace("-", "_")
        value = dashed[2] if dashed[2] is not None else "..."
        return Problem("command line", text, f"is no option of llmfactory (see --help); settings are written {name}={value}")
    return Problem("command line", text, "is no override: write key=value or group=option")


def typed(value: Any) -> str:
    """A value as one types it in an override, in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(typed(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if not isinstance(value, str) or (re.fullmatch(_PLAIN, text, re.ASCII) and not re.fullmatch(_OTHER, text)):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_PLAIN = r"[\w./%@?*-]+(?: [\w./%@?*-]+)*"
"""Texts that need no quotes."""
_OTHER = r"(?i)null|true|false|[+-]?(?:nan|inf|[\d.][\d._e+-]*)"
"""Texts that would be read as something else."""


def override(key: str, value: Any) -> str:
    """`key=value`, quoted for the shell where it must be."""
    return shlex.quote(f"{key}={typed(value)}")
