"""Catalogue of low-rank adaptation and its relatives: small changes of the matrices of linear maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

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
class LowRankSpec(AdapterSpec):
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
class Lora(LowRankSpec):
    """Low-rank adaptation (Hu et al. 2022): y = W x + s B A x, W frozen."""

    start: Start = Start.default
    """How A and B begin."""
    b_lr_ratio: float = 1.0
    """The learning rate of B, in multiples of the run's (Hayou et al. 2024, LoRA+: about 16 in their experiments)."""

    def problems(self) -> Iterator[Problem]:
        yield from LowRankSpec.problems(self)
        yield from above(self, 0.0, "b_lr_ratio", repair=1.0)

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.lora import adapt

        adapt(self, model, name)

    def lr_factors(self, model: Skeleton) -> dict[str, float]:
        from llmfactory.peft.lora import names_of_b

        return dict.fromkeys(names_of_b(model), self.b_lr_ratio) if self.b_lr_ratio != 1.0 else {}


@dataclass(kw_only=True, slots=True)
class Dora(LowRankSpec):
    """Low-rank adaptation of directions, beside a trained magnitude m of each output (Liu et al. 2024, equation 5):

    W' = m (W + s B A) / ||W + s B A||, the norm of each row held fixed in the backward pass (section 4.3).
    """

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.dora import adapt

        adapt(self, model, name)


@dataclass(kw_only=True, slots=True)
class Ia3(AdapterSpec):
    """A trained factor for each number of some vectors (Liu et al. 2022, section 3.3): keys, values, and what the last map of a
    feed-forward part reads. They begin at 1."""

    outputs: list[str] | None = None
    """Patterns of linear maps whose outputs are scaled; None: keys and values (k, v; kv where they are made together)."""
    inputs: list[str] | None = None
    """Patterns of linear maps whose inputs are scaled; None: those that end feed-forward parts (down)."""

    def problems(self) -> Iterator[Problem]:
        if self.outputs == [] and self.inputs == []:
            yield Problem("outputs", [], "with inputs=[] too, nothing would be trained", "outputs=null")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.ia3 import adapt

        adapt(self, model, name)


@dataclass(kw_only=True, slots=True)
class Bitfit(AdapterSpec):
    """The biases alone are trained (Zaken et al. 2022)."""

    changes_base: ClassVar[bool] = True

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.freezing import thaw_biases

        thaw_biases(model)


@dataclass(kw_only=True, slots=True)
class Freeze(AdapterSpec):
    """The last layers are trained, or what `train` names, and the rest is frozen."""

    changes_base: ClassVar[bool] = True

    last_layers: int = 0
    """Number of layers, counted from the end."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "last_layers")
        if not self.last_layers and not self.train:
            yield Problem("last_layers", 0, "nothing would be trained", "last_layers=2")

    def adapt(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.freezing import thaw_last_layers

        thaw_last_layers(model, self.last_layers)
