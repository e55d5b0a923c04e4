"""Catalogue of parametrizations: how first weights and learning rates follow the width of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from llmfactory.core.sharding import Parameter
    from llmfactory.model.skeleton import Skeleton
    from llmfactory.model.spec import ModelSpec


@dataclass(kw_only=True, slots=True)
class WidthSpec(Spec):
    """Base of the parametrizations."""

    def declared(
        self, model: Skeleton, spec: ModelSpec, equip: Callable[[Skeleton], object] = lambda model: None
    ) -> dict[str, Parameter]:
        """What the parts of a model declare, which was built of `spec` and equipped, as its width changes it."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of optim/width")


@dataclass(kw_only=True, slots=True)
class None_(WidthSpec):
    """The standard parametrization: neither depends on it."""

    def declared(
        self, model: Skeleton, spec: ModelSpec, equip: Callable[[Skeleton], object] = lambda model: None
    ) -> dict[str, Parameter]:
        from llmfactory.optim.width.standard import standard

        return standard(model)


@dataclass(kw_only=True, slots=True)
class Mup(WidthSpec):
    """Maximal update parametrization for optimizers like Adam (Yang et al. 2022, table 3): rates and init_std that were found at a
    small width serve at all."""

    base: dict[str, int] = field(default_factory=dict)
    """Keys of the model with their values in the narrow model whose rates and init_std are given. '{dim: 256, attention.n_heads: 4,
    ffn.hidden: 768}'"""

    def problems(self) -> Iterator[Problem]:
        if "dim" not in self.base:
            yield Problem("base", self.base, "must say the narrow model's width, dim", f"base={_shown({**self.base, 'dim': 64})}")

    def model(self, spec: ModelSpec) -> ModelSpec:
        """The narrow model. Raises KeyError with a key that the model has not, ConfigError where the two do not fit."""
        found: ModelSpec = _changed(spec, self.base)
        return found

    def declared(
        self, model: Skeleton, spec: ModelSpec, equip: Callable[[Skeleton], object] = lambda model: None
    ) -> dict[str, Parameter]:
        import torch

        from llmfactory.optim.width.mup import scaled

        with torch.device("meta"):
            base = self.model(spec).build()
            equip(base)
        return scaled(model, base)


def _shown(base: Mapping[str, int]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in base.items()) + "}"


def _changed(spec: Any, values: Mapping[str, int]) -> Any:
    """A spec with other values at dotted keys, all at once."""
    known = {one.name for one in dataclasses.fields(spec)}
    own = {key: value for key, value in values.items() if "." not in key}
    below: dict[str, dict[str, int]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if name not in known or (rest and not dataclasses.is_dataclass(getattr(spec, name))):
            raise KeyError(key)
        if rest:
            below.setdefault(name, {})[rest] = value
        elif not isinstance(getattr(spec, name), (int, type(None))):
            raise KeyError(key)
    return dataclasses.replace(spec, **own, **{name: _changed(getattr(spec, name), some) for name, some in below.items()})
