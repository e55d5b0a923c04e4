"""What a part declares of each of its parameters: how it starts and how it may be cut over a tensor-parallel group.

Parts say it beside their forward; `parallel/` walks the modules and obeys. So N parts and M layouts need N + M files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True)
class Normal:
    """Independent normal numbers with mean zero."""

    std: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.normal_(0.0, self.std, generator=generator)


@dataclass(frozen=True, slots=True)
class Constant:
    """One number everywhere: 0 for biases, 1 for norm gains."""

    value: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.fill_(self.value)


@dataclass(frozen=True, slots=True)
class Parameter:
    """The declaration of one parameter."""

    start: Normal | Constant
    layout: Layout = Layout.replicated
    decay: bool = True
    """Whether weight decay applies: matrices yes, norms and biases no."""


def name_seed(seed: int, name: str) -> int:
    """A seed for one parameter from its name, so that its first values depend on no layout and on no neighbour."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
