"""Catalogue of ways to stretch rotary positions over longer texts than a model was first trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from llmfactory.model.position.scaling.part import Scaling


@dataclass(kw_only=True, slots=True)
class ScalingSpec(Spec):
    """Base of the scalings of rotary frequencies."""

    def build(self) -> Scaling:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/position/scaling")


@dataclass(kw_only=True, slots=True)
class None_(ScalingSpec):
    """Frequencies as Su et al. 2021 have them."""

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.none import NoScaling

        return NoScaling()


@dataclass(kw_only=True, slots=True)
class StretchSpec(ScalingSpec):
    """Base of the scalings by a factor."""

    factor: float
    """Of the length: texts may be so many times longer."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1.0, "factor")


@dataclass(kw_only=True, slots=True)
class Linear(StretchSpec):
    """Position interpolation (Chen et al. 2023): every frequency divided by the factor."""

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.linear import LinearScaling

        return LinearScaling(self)


@dataclass(kw_only=True, slots=True)
class Ntk(StretchSpec):
    """A larger base, so that the slowest frequency is divided by the factor and the fastest stays (Peng et al. 2023, section 3.1)."""

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.ntk import NtkScaling

        return NtkScaling(self)


@dataclass(kw_only=True, slots=True)
class DynamicNtk(StretchSpec):
    """The same by the length of each row: nothing changes up to the trained length (Peng et al. 2023, section 3.3).

    Keys in a decoding state stay as they were turned when they were written.
    """

    trained_positions: int
    """Length, in tokens, that the model was trained on without scaling."""

    def problems(self) -> Iterator[Problem]:
        yield from StretchSpec.problems(self)
        yield from at_least(self, 1, "trained_positions")

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.dynamic_ntk import DynamicNtkScaling

        return DynamicNtkScaling(self)


@dataclass(kw_only=True, slots=True)
class Yarn(StretchSpec):
    """YaRN (Peng et al. 2023, section 3.4): slow frequencies divided, fast ones kept, a ramp between; larger products."""

    trained_positions: int
    """Length, in tokens, that the model was trained on without scaling."""
    fast: float = 32.0
    """Rotations over the trained length from which a frequency is kept (beta_fast)."""
    slow: float = 1.0
    """Rotations over the trained length up to which a frequency is divided by the whole factor (beta_slow)."""
    attention_factor: float | None = None
    """Factor of the tables, so that products of queries and keys grow by its square; None: 0.1 ln(factor) + 1; 1: by parts only."""
    whole_pairs: bool = True
    """Whether the ramp begins and ends at whole pairs of coordinates."""

    def problems(self) -> Iterator[Problem]:
        yield from StretchSpec.problems(self)
        yield from at_least(self, 1, "trained_positions")
        yield from above(self, 0.0, "slow", repair=1.0)
        yield from above(self, 0.0, "attention_factor", repair=1.0)
        if self.slow > 0 and not self.fast > self.slow:
            yield Problem("fast", self.fast, f"must be greater than slow={self.slow}", f"fast={32 * self.slow}")

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.yarn import YarnScaling

        return YarnScaling(self)


@dataclass(kw_only=True, slots=True)
class Llama3(StretchSpec):
    """LLaMA 3.1: wavelengths beyond the trained length divided, short ones kept, a ramp between (Dubey et al. 2024)."""

    trained_positions: int
    """Length, in tokens, that the model was trained on without scaling."""
    low: float = 1.0
    """Rotations over the trained length up to which a frequency is divided by the whole factor (low_freq_factor)."""
    high: float = 4.0
    """Rotations over the trained length from which a frequency is kept (high_freq_factor)."""

    def problems(self) -> Iterator[Problem]:
        yield from StretchSpec.problems(self)
        yield from at_least(self, 1, "trained_positions")
        yield from above(self, 0.0, "low", repair=1.0)
        if self.low > 0 and not self.high > self.low:
            yield Problem("high", self.high, f"must be greater than low={self.low}", f"high={4 * self.low}")

    def build(self) -> Scaling:
        from llmfactory.model.position.scaling.llama3 import Llama3Scaling

        return Llama3Scaling(self)
