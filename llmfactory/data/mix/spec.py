"""Catalogue of mixtures: what share of the training tokens each source gives.

Weights are shares of tokens. How rows are packed does not matter: a source whose rows are half padding gives twice as many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

Weights = dict[str, float]
"""By source; they need not add up to 1."""
Knot = tuple[float, Weights]
"""(share of the run, weights from there on)."""


@dataclass(kw_only=True, slots=True)
class MixSpec(Spec):
    """Base of the mixtures."""

    max_epochs: dict[str, float] = field(default_factory=dict)
    """By source: how often it is read at most; then the others take its share. Sources not named: no limit."""

    @abstractmethod
    def knots(self, tokens: Mapping[str, int]) -> list[Knot]:
        """The course of the weights: they go linearly from knot to knot, jump where two stand at one place, and stay after the
        last. `tokens`: of each source."""

    def span(self, max_steps: int) -> int:
        """Optimizer steps that the course of the weights is spread over."""
        return max_steps

    def problems(self) -> Iterator[Problem]:
        for name, epochs in self.max_epochs.items():
            if not epochs > 0:
                yield Problem(f"max_epochs.{name}", epochs, "must be greater than 0", f"max_epochs.{name}=1")

    def against(self, sources: Sequence[str]) -> Iterator[Problem]:
        """What does not go with these sources."""
        for name in sorted(set(self.max_epochs) - set(sources)):
            yield Problem("mix.max_epochs", self.max_epochs, f"{name!r} is no source: {', '.join(sources)}", "mix.max_epochs={}")


@dataclass(kw_only=True, slots=True)
class Fixed(MixSpec):
    """Weights that stay."""

    weights: dict[str, float] = field(default_factory=dict)
    """By source, in any unit; empty: all alike."""

    def knots(self, tokens: Mapping[str, int]) -> list[Knot]:
        from llmfactory.data.mix.fixed import knots

        return knots(self, tokens)

    def problems(self) -> Iterator[Problem]:
        yield from MixSpec.problems(self)
        yield from weighed("weights", self.weights)

    def against(self, sources: Sequence[str]) -> Iterator[Problem]:
        yield from MixSpec.against(self, sources)
        yield from matched("mix.weights", self.weights, sources)


@dataclass(kw_only=True, slots=True)
class ByTokens(MixSpec):
    """Weights from sizes: min(tokens, cap)^(1 / temperature) (Raffel et al. 2020, section 3.5.2; Conneau and Lample 2019 call
    1 / temperature alpha)."""

    temperature: float = 1.0
    """1: in proportion to tokens; larger ones favor small sources, up to all alike."""
    cap: int | None = None
    """Tokens that a source counts at most; None: all it has."""

    def knots(self, tokens: Mapping[str, int]) -> list[Knot]:
        from llmfactory.data.mix.by_tokens import knots

        return knots(self, tokens)

    def problems(self) -> Iterator[Problem]:
        yield from MixSpec.problems(self)
        yield from above(self, 0.0, "temperature", repair=1.0)
        yield from at_least(self, 1, "cap")


class Transition(Enum):
    """How weights change between two places."""

    linear = "little by little"
    step = "at once, at the second place"


@dataclass(kw_only=True, slots=True)
class Curriculum(MixSpec):
    """Weights that change in the course of the run."""

    at: list[float]
    """Places in the run, from 0 (its start) to 1 (its end), ascending; the first is 0."""
    weights: dict[str, list[float]]
    """By source: its weight at each of these places."""
    transition: Transition = Transition.linear
    """How weights change from place to place."""
    horizon: int | None = None
    """Optimizer steps that 1 stands for; None: trainer.max_steps."""

    def span(self, max_steps: int) -> int:
        return max_steps if self.horizon is None else self.horizon

    def knots(self, tokens: Mapping[str, int]) -> list[Knot]:
        from llmfactory.data.mix.curriculum import knots

        return knots(self, tokens)

    def problems(self) -> Iterator[Problem]:
        yield from MixSpec.problems(self)
        yield from at_least(self, 1, "horizon")
        if not self.at or self.at[0] != 0 or sorted(set(self.at)) != self.at or self.at[-1] > 1:
            yield Problem("at", self.at, "must ascend from 0 and end at 1 at most", "at=[0.0,1.0]")
        for name, weights in self.weights.items():
            if len(weights) != len(self.at):
                reason = f"{name!r} has {len(weights)} weights for the {len(self.at)} places of `at`"
                yield Problem(f"weights.{name}", weights, reason, f"weights.{name}={_plain(_fitted(weights, len(self.at)))}")
                return
        for place in range(len(self.at)):
            here = {name: weights[place] for name, weights in self.weights.items()}
            yield from weighed("weights", here, f" at place {self.at[place]}")

    def against(self, sources: Sequence[str]) -> Iterator[Problem]:
        yield from MixSpec.against(self, sources)
        yield from matched("mix.weights", self.weights, sources)


@dataclass(kw_only=True, slots=True)
class FromFile(MixSpec):
    """Weights that another run has found, as `stage=reweight` writes them."""

    file: str
    """A JSON file with `weights` by source: outputs/<run>/weights.json."""

    def knots(self, tokens: Mapping[str, int]) -> list[Knot]:
        from llmfactory.data.mix.from_file import knots

        return knots(self, tokens)


def weighed(path: str, weights: Mapping[str, float], where: str = "") -> Iterator[Problem]:
    """Problems of weights by themselves."""
    wrong = [name for name, weight in weights.items() if not 0 <= weight < float("inf")]
    if wrong:
        yield Problem(path, dict(weights), f"the weight of {wrong[0]!r}{where} must be a number from 0 on")
    elif weights and not any(weights.values()):
        yield Problem(path, dict(weights), f"all weights{where} are 0, so nothing would be drawn")


def matched(path: str, weights: Mapping[str, object], sources: Sequence[str]) -> Iterator[Problem]:
    """Problems of names; no weights at all pass."""
    missing = [name for name in sources if name not in weights]
    unknown = [name for name in weights if name not in sources]
    if weights and (missing or unknown):
        told = [f"{', '.join(missing)} has none"] if missing else []
        told += [f"{', '.join(unknown)} is no source of data.sources"] if unknown else []
        reason = f"every source needs a weight, and only they: {'; '.join(told)} (0: never drawn)"
        yield Problem(path, dict(weights), reason, "data/mix=by_tokens")


def _fitted(weights: list[float], places: int) -> list[float]:
    return (weights + weights[-1:] * places)[:places] or [1.0] * places


def _plain(weights: list[float]) -> str:
    return f"[{','.join(map(str, weights))}]"
