"""What a part declares of each of its parameters: how it starts and how it may be cut over a tensor-parallel group.

Parts say it beside their forward; `parallel/` walks the modules and obeys. So N parts and M layouts need N + M files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Layout(str, Enum):
    """How a parameter is cut over the tensor-parallel group."""

    replicated = "replicated"
    """Whole on every rank."""
    column = "column"
    """Output features are cut: dimension 0 of a linear weight or bias."""
    row = "row"
    """Input features are cut: dimension 1 of a linear weight; the partial results are summed."""
    vocab = "vocab"
    """The vocabulary is cut: dimension 0 of an embedding or of a head."""
    expert = "expert"
    """Experts are dealt out: dimension 0 of a stack of their matrices. Over the tensor-parallel group each one's hidden units are."""


class Start(Protocol):
    """How a parameter's first values are made; its text says so in `stage=describe`."""

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        """Fill the whole parameter, float32 on the CPU; all randomness comes from the generator."""
        ...


@dataclass(frozen=True, slots=True)
class Normal:
    """Independent normal numbers with mean zero."""

    std: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.normal_(0.0, self.std, generator=generator)

    def __str__(self) -> str:
        return f"normal, std {self.std:.4g}"


@dataclass(frozen=True, slots=True)
class Uniform:
    """Independent numbers spread evenly over [-bound, bound]."""

    bound: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.uniform_(-self.bound, self.bound, generator=generator)

    def __str__(self) -> str:
        return f"uniform, up to {self.bound:.4g}"


@dataclass(frozen=True, slots=True)
class Constant:
    """One number everywhere: 0 for biases, 1 for norm gains."""

    value: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.fill_(self.value)

    def __str__(self) -> str:
        return f"constant {self.value:g}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """The declaration of one parameter."""

    start: Start
    layout: Layout = Layout.replicated
    decay: bool = True
    """Whether weight decay applies: matrices yes, norms and biases no."""
    unit: int = 1
    """Features that stay together when they are cut: the width of a head."""
    shared: bool = False
    """Where there are fewer units than processes, several processes work with the same one: key/value heads that query heads
    share."""
    fan_in: int | None = None
    """The dimension that a matrix product sums over; None: no product does (tables that are looked up, gains, biases)."""
    rate: float = 1.0
    """Multiple of the learning rate at which it learns, for the model's width (`optim/width`)."""
    hidden: int | None = None
    """Of a stack of experts' matrices, the dimension of their hidden units, which is cut over the tensor-parallel group."""


def name_seed(seed: int, name: str) -> int:
    """A seed for one parameter from its name, so that its first values depend on no layout and on no neighbour."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
