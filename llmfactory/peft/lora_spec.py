"""Catalogue of low-rank adaptation and its relatives: small changes of the matrices of linear maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import above, at_least, between
from llmfactory.peft.base_spec import DEFAULT, AdapterSpec

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton


class Start(Enum):
    """How the two matrices begin. Their product is zero, or taken from the base's matrix, so that training starts at the base."""

    default = "A uniform in +-1/sqrt(inputs), B zero (Hu et al. 2022, as peft has it)"
    gaussian = "A normal with standard deviation 1/rank, B zero"
    orthogonal = "A's rows orthonormal, B zero"
    pissa = "the first singular vectors of the base's matrix, which keeps the rest (Meng et al. 2024, PiSSA)"


@dataclass(kw_only=True, slots=True)
class LowRank(AdapterSpec):
    """Base of the methods with two low-rank matrices: a change s B A of a matrix [O, I], B [O, rank], A [rank, I]."""

    rank: int = 16
    """Rank of the change."""
    alpha: float = 32.0
    """The change is scaled by s = alpha / rank."""
    dropout: float = 0.0
    """Probability that a number of a map's input is left out of the change."""
    targets: list[str] | None = None
    """Patterns of linear maps' names (q, attention.*, re:blocks[.]0[.].*); None: all but the head's and those that route."""
    rank_stabilized: bool = False
    """Scale by s = alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA)."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "rank")
        yield from above(self, 0.0, "alpha", repair=32.0)
        yield from between(self, 0.0, 0.99, "dropout")
        if self.targets == []:
            yield Problem("targets", [], "no linear map would be changed", "targets=null")

    @property
    def scale(self) -> float:
        return float(self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank))


@dataclass(kw_only=True, slots=True)
class Lora(LowRank):
    """Low-rank adaptation (Hu et al. 2022): y = W x + s B A x, W frozen."""

    start: Start = Start.default
    """How A and B begin."""
    b_lr_ratio: float = 1.0
    """The learning rate of B, in multiples of the run's (Hayou et al. 2024, LoRA+: about 16 in their experiments)."""

    def problems(self) -> Iterator[Problem]:
        yield from LowRank.problems(self)
        yield from above(self, 0.0, "b_lr_ratio", repair=1.0)

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.lora import adapt

        adapt(self, model, name)

    def lr_factors(self, model: Skeleton) -> dict[str, float]:
        from llmfactory.peft.lora import names_of_b

        return dict.fromkeys(names_of_b(model), self.b_lr_ratio) if self.b_lr_ratio != 1.0 else {}
