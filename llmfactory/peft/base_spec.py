"""The base of all parameter-efficient methods' specs, for the pages of the catalogue that stand beside spec.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from llmfactory.model.skeleton import Skeleton
    from llmfactory.parallel.mesh import World

DEFAULT = "default"
"""Name of an adapter that nobody has named."""


@dataclass(kw_only=True, slots=True)
class PeftSpec(Spec):
    """Base of the methods."""

    merges: ClassVar[bool] = True
    """What it has trained can be put into the model's own weights, exactly but for rounding."""
    changes_base: ClassVar[bool] = False
    """It trains parameters of the model itself, so that nothing is left of the model without it."""

    def apply(self, model: Skeleton, name: str = DEFAULT) -> None:
        """Change the built model in place, before its parameters have values: add what the method trains, freeze the rest.

        What is added are parts that declare their parameters, under `name`. `model.added` gets their names, `model.borrowed` those
        of all that is frozen.
        """
        raise TypeError(f"{type(self).__name__} is a base: pick an option of peft")

    def begin(self, model: Skeleton, world: World, encode: Callable[[str], list[int]] | None = None) -> None:
        """Give what was added the first values that depend on the model's own weights, which it has by now, as they lie over
        `world`. Called by every process. `encode`: tokens of a text; None: there is no tokenizer."""
        return

    def stepped(self, model: Skeleton, step: int, taken: Tensor) -> None:
        """What is to be done after an optimizer step, counted from 0, while the gradients are still there; `taken` (a truth value on the
        device): the step reached the weights. Called by every process."""
        return

    def lr_factors(self, model: Skeleton) -> dict[str, float]:
        """By name, what the learning rate of a parameter is multiplied by; those left out have the run's."""
        return {}


@dataclass(kw_only=True, slots=True)
class AdapterSpec(PeftSpec):
    """Base of the methods that freeze the model and train a small part: adapters beside it, or some of its parameters."""

    train: list[str] | None = None
    """Patterns of the model's own parameters that are trained whole besides (norm, head, re:.*bias); None: the head, where it
    starts anew."""

    def apply(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.freezing import applied

        applied(self, model, name)

    def adapt(self, model: Skeleton, name: str) -> None:
        """Add adapters to the model, which is frozen by now, or thaw what is to be trained (`requires_grad_`)."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of peft")

    def begin(self, model: Skeleton, world: World, encode: Callable[[str], list[int]] | None = None) -> None:
        from llmfactory.peft.beginning import begin

        begin(model, world)
