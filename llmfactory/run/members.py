"""The members of a sweep, known before the first one starts, and everything that is wrong with any of them in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep

from llmfactory.config.compose import Composed, compose_job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.stage.spec import Line

Member = list[str]
"""Overrides of one member."""


def combinations(overrides: list[Override]) -> list[Member]:
    """Every combination of the swept values, numbered as Hydra's basic sweeper numbers them."""
    ranges = [override for override in overrides if isinstance(override.value(), IntervalSweep)]
    if ranges:
        raise ConfigError(
            Problem(
                override.get_key_element(),
                typed(override),
                "an interval needs a sweeper that samples",
                f"{override.get_key_element()}={low},{high}",
            )
            for override in ranges
            for low, high in [ends(override.value())]
        )
    return [list(member) for member in BasicSweeper.split_arguments(overrides, None)[0]]


def corners(overrides: list[Override]) -> list[Member]:
    """What a sampled sweeper can be checked at: each choice and both ends of each range, one at a time from the first of each."""
    axes = {override.get_key_element(): values(override) for override in overrides}
    first = {key: axis[0] for key, axis in axes.items()}
    members = [first]
    for key, axis in axes.items():
        members += [{**first, key: value} for value in axis[1:]]
    return [[f"{key}={value}" for key, value in member.items()] for member in members]


def values(override: Override) -> list[str]:
    """Values of one override to check, as typed on a command line."""
    value = override.value()
    if isinstance(value, (RangeSweep, IntervalSweep)):
        return [str(end) for end in ends(value)]
    if isinstance(value, (ChoiceSweep, Glob)):
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def typed(override: Override) -> str:
    """The value as it stands on the command line."""
    return (override.input_line or "").partition("=")[2]


def ends(sweep: Any) -> tuple[Any, Any]:
    """Both ends of a range (its last value, not its bound) or of an interval."""
    if isinstance(sweep, RangeSweep):
        steps = list(sweep.range())
        return steps[0], steps[-1]
    return sweep.start, sweep.end


def compose_all(members: Sequence[Member], config_dirs: Sequence[Path]) -> list[Composed]:
    """Compose and parse each member. Raises one ConfigError that says of each problem which members have it."""
    composed, found = [], Findings(members)
    for number, member in enumerate(members):
        try:
            composed.append(compose_job(member, config_dirs))
            if isinstance(composed[-1].job.stage, Line):
                from llmfactory.run.line_plan import plan  # loads torch

                plan(composed[-1])
        except ConfigError as error:
            found.add(number, error)
    found.raise_if_any()
    return composed


class Findings:
    """Problems of members, the same problem of several told once."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.found: dict[str, tuple[Problem, list[int]]] = {}

    def add(self, number: int, error: ConfigError) -> None:
        for problem in error.problems:
            self.found.setdefault(str(problem), (problem, []))[1].append(number)

    def raise_if_any(self) -> None:
        if self.found:
            raise ConfigError(list(self._told()))

    def _told(self) -> Iterator[Problem]:
        for problem, numbers in self.found.values():
            if len(numbers) == len(self.members):
                who = "all members"
            elif len(numbers) == 1:
                who = f"member {numbers[0]}: {' '.join(self.members[numbers[0]])}"
            else:
                who = f"members {', '.join(map(str, numbers))}"
            yield Problem(problem.path, problem.value, f"{problem.reason} ({who})", problem.repair)
