"""The interface of methods that the library `peft` has too: how its config and tensors read in our terms, and back.

Nothing here imports torch before tensors are asked for.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmfactory.checkpoint.names.adapter import CONFIG, PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_places import WEIGHT, Place, places
from llmfactory.checkpoint.names.family import Entry, Family, Inexpressible
from llmfactory.core.errors import UserError
from llmfactory.model.spec import ModelSpec
from llmfactory.peft.base_spec import DEFAULT
from llmfactory.peft.spec import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

    from llmfactory.model.skeleton import Skeleton

Config = dict[str, Any]


@dataclass(frozen=True)
class Outgoing:
    """An adapter of ours on its way out."""

    peft: AdapterSpec
    spec: ModelSpec
    family: Family
    model: Skeleton
    """With its adapters, which have their values; the rest has none."""
    base: Callable[[str], Tensor]
    """A tensor of the base under our name."""

    @cached_property
    def places(self) -> list[Place]:
        return list(places(self.family.entries(self.spec), outputs(self.model)))


@dataclass(frozen=True)
class Incoming:
    """An adapter of theirs on its way in."""

    folder: AdapterFolder
    read: Callable[[str], Tensor]
    """A tensor under their name."""
    model: Skeleton
    """The base's, without memory and adapters."""

    @cached_property
    def places(self) -> dict[str, Place]:
        return {
            place.module: place for place in places(self.folder.base.family.entries(self.folder.base.spec), outputs(self.model))
        }

    def by_place(self, ending: str) -> Iterator[tuple[Place, Tensor]]:
        """Tensors that stand beside linear maps under names with this ending."""
        for name, module in beside(self.folder, ending).items():
            if module not in self.places:
                raise UserError(f"{self.folder.path}: {name} stands beside {module}, which is no linear map here")
            yield self.places[module], self.read(name)


class Method(ABC):
    """One `peft_type`."""

    kind: str
    specs: tuple[type[AdapterSpec], ...]
    """The options of ours that are written as it."""

    @abstractmethod
    def spec(self, folder: AdapterFolder) -> AdapterSpec:
        """The method that a folder's config describes, without what it trains besides. Raises UserError."""

    @abstractmethod
    def ours(self, incoming: Incoming, spec: AdapterSpec) -> Iterator[tuple[str, Tensor]]:
        """Values of our adapters, by name in the model."""

    @abstractmethod
    def theirs(self, outgoing: Outgoing) -> tuple[Config, dict[str, Tensor]]:
        """What it says in the config, and its tensors under their names. Raises Inexpressible."""


def outputs(model: Skeleton) -> dict[str, int]:
    """Width of what each linear map of a model gives, by its path."""
    from torch import nn

    return {path: module.out_features for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def ours_at(path: str, tensor: str) -> str:
    """The name of an adapter's tensor in our model."""
    return f"{path}.adapters.{DEFAULT}.{tensor}"


# ---- modules by name


def entries_by_module(entries: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    """Their modules with a matrix, and the paths of ours that stand in it."""
    return {
        name.removesuffix(WEIGHT): tuple(own.removesuffix(WEIGHT) for own in entry.ours)
        for entry in entries
        for name in entry.theirs
        if name.endswith(WEIGHT)
    }


def beside(folder: AdapterFolder, ending: str) -> dict[str, str]:
    """Tensors whose names end so, and the module of the base that each stands beside.

    An adapter that was trained on the model without its head lacks the first part of the names.
    """
    known = entries_by_module(folder.base.family.entries(folder.base.spec))
    short = {module.partition(".")[2]: module for module in known}
    found = {}
    for name in folder.tensors:
        if name.startswith(PREFIX) and name.endswith(ending):
            module = name[len(PREFIX) : -len(ending)]
            if module not in known and module not in short:
                raise UserError(
                    f"{folder.path}: {name} stands beside {module}, which the model in {folder.base.path} does not have"
                )
            found[name] = module if module in known else short[module]
    return found


def patterns(chosen: Iterable[str], there: Iterable[str]) -> list[str]:
    """Globs that mean the chosen paths and no others of those that there are; the paths themselves where none does."""
    wanted, by_glob = set(chosen), dict[str, set[str]]()
    for path in there:
        by_glob.setdefault(re.sub(r"\b\d+\b", "*", path), set()).add(path)
    found: list[str] = []
    for glob, paths in by_glob.items():
        meant = wanted & paths
        found += [glob] if meant == paths else sorted(meant)
    return found


def endings(modules: Iterable[str], there: Iterable[str]) -> list[str]:
    """The last names of modules where these mean them and no others (as `peft` reads `target_modules`); else whole names."""
    wanted, all_there = set(modules), set(there)
    found: dict[str, None] = {}
    for module in sorted(wanted):
        last = module.rpartition(".")[2]
        alike = {other for other in all_there if other == last or other.endswith(f".{last}")}
        found[last if alike <= wanted else module] = None
    return list(found)


def number(folder: AdapterFolder, key: str, default: float | None = None) -> float:
    """A number in the config."""
    value = folder.config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{folder.path / CONFIG} is damaged: {key}={value!r} is no number")
    return float(value)


def table(folder: AdapterFolder, key: str) -> Mapping[str, Any]:
    """A mapping in the config; null is an empty one."""
    value = folder.config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{folder.path / CONFIG} is damaged: {key}={value!r} is no mapping")
    return value


def insist_all(outgoing: Outgoing, paths: Iterable[str]) -> None:
    """Every adapted map must stand in one of theirs."""
    placed = {path for place in outgoing.places for path in place.ours}
    if missing := sorted(set(paths) - placed):
        raise Inexpressible(
            f"{', '.join(missing[:3])} is no linear map of its own in {outgoing.family.types[0]}, so that peft puts nothing beside it"
        )
