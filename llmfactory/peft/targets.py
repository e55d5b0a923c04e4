"""Which linear maps and parameters of a model are meant: by patterns of their names.

A pattern is a glob over the whole name or its end, from a dot on (`q`, `attention.*`, `blocks.3.*`), or with `re:` in front a
regular expression for the whole name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn

from llmfactory.core.errors import UserError
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.ffn.moe import MixtureOfExperts
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.part import ADAPTERS

REGEX = "re:"
HEAD = "head."
GATE = "shared_gate"
"""Of a mixture, the map that weighs its shared part: it routes, as the router does."""


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name."""
    if pattern.startswith(REGEX):
        return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """All linear maps of a model by name, in order; under `<path>.<name>` the stacks of experts' matrices too, with their part."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if f".{ADAPTERS}." in f".{path}.":
            continue
        if isinstance(module, nn.Linear):
            found[path] = module
        elif isinstance(module, Experts):
            found.update({f"{path}.{name}": module for name in module.declare()})
    return found


def targets(model: Skeleton, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """The linear maps that patterns mean, as `linear_maps` has them; None: all.

    Those of the head and what routes to experts are meant by patterns that name them only (`head.*`, `shared_gate`).

    Raises:
        UserError: a pattern that means none; the message names what there is.
    """
    there = linear_maps(model)
    routing = {
        f"{path}.{GATE}" for path, part in model.named_modules() if isinstance(part, MixtureOfExperts) and part.shared_gate
    }
    if patterns is None:
        chosen = set(there) - routing - {name for name in there if name.startswith(HEAD)}
        _insist(bool(chosen), "*", there)
    else:
        chosen = set()
        for pattern in patterns:
            meant = {name for name in there if matches(name, pattern)}
            if HEAD.rstrip(".") not in pattern:
                meant = {name for name in meant if not name.startswith(HEAD)}
            if GATE not in pattern:
                meant -= routing
            _insist(bool(meant), pattern, there)
            chosen |= meant
    return {name: module for name, module in there.items() if name in chosen}


def insist_called(model: nn.Module, chosen: Iterable[str], what: str) -> None:
    """Refuse maps whose matrix alone is used, where a method needs their inputs or outputs."""
    read = {f"{path}.{name}" for path, part in model.named_modules() if isinstance(part, Part) for name in part.reads}
    for name in chosen:
        if name in read:
            raise UserError(f"of {name} the model uses the matrix alone, beside which {what}: name other linear maps in peft")


def _insist(found: bool, pattern: str, there: Iterable[str]) -> None:
    if not found:
        raise UserError(f"no linear map is called {pattern}; there are {listed(there)}")


def listed(names: Iterable[str]) -> str:
    """Names with `*` for numbers, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names)) or "none"


def chosen_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the model's parameters that patterns mean, or whose module they mean (`head` means all below it).

    Raises:
        UserError: a pattern that means none; the message names what there is.
    """
    return parameters_below(model, patterns, [name for name, _ in model.named_parameters() if f".{ADAPTERS}." not in f".{name}."])


def parameters_below(model: nn.Module, patterns: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """The same among these names of parameters; None: all, also those of adapters."""
    names = [name for name, _ in model.named_parameters()] if names is None else names
    found: set[str] = set()
    for pattern in patterns:
        meant = [name for name in names if any(matches(part, pattern) for part in _prefixes(name))]
        if not meant:
            raise UserError(f"no parameter is called {pattern}; there are {listed(names)}")
        found.update(meant)
    return [name for name in names if name in found]


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
