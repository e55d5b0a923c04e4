"""The base of all parameter-efficient methods' specs, for the pages of the catalogue that stand beside spec.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton
    from llmfactory.parallel.mesh import World


@dataclass(kw_only=True, slots=True)
class PeftSpec(Spec):
    """Base of the methods."""

    def apply(self, model: Skeleton) -> None:
        """Change the built model in place, before its parameters have values: add what the method trains, freeze the rest.

        What is added are parts that declare their parameters. `model.added` gets their names, `model.borrowed` those of all that
        is frozen.
        """
        raise TypeError(f"{type(self).__name__} is a base: pick an option of peft")

    def begin(self, model: Skeleton, world: World) -> None:
        """Give what was added the first values that depend on the model's own weights, which it has by now, as they lie over
        `world`. Called by every process."""
        return
