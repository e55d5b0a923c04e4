"""Catalogue page of stage=profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least
from llmfactory.stage.base_spec import StageSpec


@dataclass(kw_only=True, slots=True)
class Profile(StageSpec):
    """Run the first steps of a training exactly as they would run, and say where their time, operations and memory go.

    It wraps the stage that the rest of the command picks, so that any command of a training is profiled by `stage=profile` at its end.
    """

    keeps: ClassVar[bool] = True

    of: StageSpec
    """The training, an option of `stage`: `stage.of=sft`. Its fields are written as ever: `stage.objective.label_smoothing=0.1`."""
    warm_up: int = 3
    """Steps before the first that is measured."""
    measured: int = 8
    """Steps that are timed; the middle half of them counts, by length, or all where the model writes what it learns from."""
    stacks: bool = True
    """One step more with Python's stacks, for a flame graph."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "warm_up", "measured")

    @property
    def steps(self) -> int:
        """Of the whole run: warm-up, timed ones, one that is traced, one with stacks."""
        return self.warm_up + self.measured + 1 + self.stacks
