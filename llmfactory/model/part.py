"""The base of everything a model is built from."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from llmfactory.core.sharding import Parameter


class Part(nn.Module):
    """A module that declares, beside its forward, how its own parameters start and how they may be cut."""

    @abstractmethod
    def declare(self) -> dict[str, Parameter]:
        """A declaration for each parameter that this part owns (not those of parts within it), by its name relative to it.

        `model/declarations.py` collects them over a whole model and insists on exactly one for each parameter.
        """
