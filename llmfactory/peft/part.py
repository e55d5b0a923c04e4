"""What a method adds to a model: parts beside the model's own, under `<path of the module>.adapters.<adapter's name>`.

The model's own parameters keep their names, and a module that has adapters is still what it was to everybody else: a layout cuts
it, a checkpoint names it as before. An adapter that is not active does nothing, as if it were not there.

An adapter must not hold an `nn.ModuleList`: layouts take the members of lists for blocks (`parallel/shard.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from llmfactory.kernel.linear import Product
from llmfactory.model.part import Part
from llmfactory.peft.base_spec import DEFAULT

ADAPTERS = "adapters"
"""Name of the module that holds a module's adapters."""


class Adapter(Part):
    """Base of everything that a method adds. Its parameters are trained, and declared as those of any part."""

    takes_from_base: bool = False
    """It began with a part of the base's weights, which are not what they were without it."""

    def __init__(self, name: str = DEFAULT) -> None:
        super().__init__()
        self.name = name
        self.active = True
        """Whether it takes part in the forward pass; `peft/active.py` switches it."""


class First(NamedTuple):
    """First values that depend on the base's weights."""

    values: dict[str, Tensor]
    """Whole tensors of the adapter's own parameters, by their names in it; those left out keep what they have."""
    weight: Tensor | None = None
    """What the base's matrix becomes; None: it stays."""


class LinearAdapter(Adapter):
    """Changes the product of a linear map [O, I]."""

    merged: bool = False
    """It stands in the map's matrix (`peft/merge.py`), and must not be active."""
    note: Tensor | None = None
    """What `noted` said when it was put there."""

    @abstractmethod
    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., I] -> [..., O], without the bias. `base`: the product without this adapter. Where the map's inputs are cut over a
        tensor-parallel group, `x` is a piece and what comes out is a partial result, to be summed over that group."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix [O, I] that has this adapter in it, of the one without."""

    @abstractmethod
    def restored(self, weight: Tensor) -> Tensor:
        """The other way: of a matrix that `matrix` made the one without."""

    def offset(self, bias: Tensor) -> Tensor:
        """The bias [O] that has this adapter in it, of the one without."""
        return bias

    def restored_offset(self, bias: Tensor) -> Tensor:
        """The other way."""
        return bias

    def noted(self, weight: Tensor) -> Tensor | None:
        """What `restored` will have to know of the matrix besides what `matrix` makes of it."""
        return None

    def first(self, weight: Tensor) -> First:
        """First values for a base with this whole matrix."""
        return First({})

    @property
    def needs_base(self) -> bool:
        """Whether `first` says anything."""
        return False


class Adapted(Product):
    """A linear map with adapters beside it."""

    adapters: nn.ModuleDict

    def product(self, x: Tensor) -> Tensor:
        product: Callable[[Tensor], Tensor] = super().product
        for adapter in self.on():
            product = partial(adapter.product, linear=self, base=product)
        return product(x)

    def base_matrix(self) -> Tensor:
        """What the map multiplies by without its adapters."""
        return super().matrix()

    def matrix(self) -> Tensor:
        matrix = super().matrix()
        for adapter in self.on():
            matrix = adapter.matrix(matrix)
        return matrix

    def offset(self) -> Tensor | None:
        bias = super().offset()
        if bias is not None:
            for adapter in self.on():
                bias = adapter.offset(bias)
        return bias

    def on(self) -> list[LinearAdapter]:
        """The active adapters."""
        return [one for one in self.adapters.values() if isinstance(one, LinearAdapter) and one.active]


def attach(module: nn.Module, adapter: Adapter) -> None:
    """Put an adapter beside a module, under its own name. Who runs it is the caller's business (a hook), but for linear maps."""
    held = module._modules.get(ADAPTERS)
    if held is None:
        held = nn.ModuleDict()
        module.add_module(ADAPTERS, held)
    assert isinstance(held, nn.ModuleDict)
    if adapter.name in held:
        raise ValueError(f"there is an adapter called {adapter.name!r} already")
    held[adapter.name] = adapter
    if isinstance(module, nn.Linear) and not isinstance(module, Adapted):
        kind = type(module)
        module.__class__ = Adapted if kind is nn.Linear else type(kind.__name__, (Adapted, kind), {})


BIAS = "bias"


def changing(model: nn.Module, active: bool = True) -> dict[str, list[LinearAdapter]]:
    """By the name of a matrix or of a bias, the adapters that change it, in order; `active`: of these only."""
    found: dict[str, list[LinearAdapter]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Adapted):
            held = [one for one in module.adapters.values() if isinstance(one, LinearAdapter)]
            found[f"{path}.weight"] = [one for one in held if one.active or not active]
            if module.bias is not None:
                found[f"{path}.{BIAS}"] = found[f"{path}.weight"]
    return found


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """All adapters in a model with their paths."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name, module
