"""The interface of parts that keep a matrix in another form than weights to start from have it: in a few bits.

Whoever fills a model with first weights hands such a part each matrix once, whole and in full precision; nothing else of the model is
in full precision at that time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part


class Packed(Part):
    """A linear map whose matrix stands in the parameters that it declares, packed."""

    declared: Parameter
    """Of the matrix, as the part that owns the map declares it."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Of the matrix."""

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The whole contents of its parameters, by name, that hold a matrix."""

    @abstractmethod
    def rounded(self, weight: Tensor) -> Tensor:
        """What it multiplies by where it was given this matrix."""

    @abstractmethod
    def unpacked(self) -> Tensor:
        """The whole matrix that it multiplies by, however it lies over processes, which all call this."""

    def contents(self, weight: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Its parameters, and what each of them holds of a matrix."""
        for name, content in self.pack(weight).items():
            yield self.get_parameter(name), content


def packed(model: nn.Module) -> dict[str, Packed]:
    """By the name that its matrix has in a model as it was built, each part of this kind whose layer this process has."""
    found = ((path, module) for path, module in model.named_modules() if isinstance(module, Packed))
    return {f"{path}.weight": part for path, part in found if next(part.parameters(recurse=False), None) is not None}
