"""One shape for everything that can be wrong with a config: what, where, why, and the override that repairs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    path: str
    """Dotted key, relative to the spec that found it until the parser prefixes the spec's own path."""
    value: Any
    """What stands there now; the text is shown with `repr`."""
    reason: str
    """Why that cannot work, in one sentence without a full stop."""
    repair: str | None = None
    """Overrides that mend it, as typed on the command line (several separated by a space); None where only the user can know."""

    def below(self, prefix: str) -> Problem:
        """The same problem seen from the root: keys of `path` and of `repair` get `prefix` in front.

        In a repair that chooses another part, `model/block@block=pre_norm`, that is the place behind the `@`; without one it
        holds for the whole config already.
        """
        if not prefix:
            return self
        repair = self.repair and " ".join(_below(part, prefix) for part in self.repair.split(" "))
        return replace(self, path=f"{prefix}.{self.path}" if self.path else prefix, repair=repair)

    def __str__(self) -> str:
        lines = [f"{self.path} = {self.value!r}: {self.reason}"]
        if self.repair:
            lines.append(f"  try: {self.repair}")
        return "\n".join(lines)


def _below(override: str, prefix: str) -> str:
    key, _, value = override.partition("=")
    group, _, place = key.partition("@")
    if "/" not in group:
        return f"{prefix}.{override}"
    if not place:
        return override
    usual = f"{prefix}.{place}" == group.replace("/", ".")
    return f"{group}={value}" if usual else f"{group}@{prefix}.{place}={value}"


class ConfigError(ValueError):
    """Every problem of a config at once. The command line prints it without a traceback and exits with 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UserError(RuntimeError):
    """Something outside the config is wrong: a file, a disk, a checkpoint, a process. One message that names the thing.

    The command line prints it without a traceback and exits with 1.
    """


class MissingExtra(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, need: str) -> None:
        super().__init__(f"{need} needs the package {package!r}, which is not installed: pip install 'llmfactory[{extra}]'")
