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

from llmfactory.core.sharding import Parameter
from llmfactory.kernel.eight_bit_linear import EightBit
from llmfactory.kernel.linear import Product
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.packed import Packed
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


class MatrixAdapter(Adapter):
    """Changes what is multiplied with a matrix [O, I], or with each of a stack of them."""

    merged: bool = False
    """It stands in the matrix (`peft/merge.py`), and must not be active."""
    note: Tensor | None = None
    """What `noted` said when it was put there."""

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


class LinearAdapter(MatrixAdapter):
    """Changes the product of a linear map."""

    @abstractmethod
    def product(self, x: Tensor, linear: Adapted, base: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., I] -> [..., O], without the bias. `base`: the product without this adapter. Where the map's inputs are cut over a
        tensor-parallel group, `x` is a piece and what comes out is a partial result, to be summed over that group."""


class Adapted(Product):
    """A linear map with adapters beside it."""

    adapters: nn.ModuleDict

    def product(self, x: Tensor) -> Tensor:
        product: Callable[[Tensor], Tensor] = super().product
        for adapter in self.on():
            product = partial(adapter.product, linear=self, base=product)
        return product(x)

    def alone(self) -> Tensor | None:
        """The matrix [O, I], where it is frozen, multiplies in full precision, and one adapter alone changes its product; else
        None."""
        if isinstance(self, (Packed, EightBit)) or len(self.on()) > 1 or self.weight.requires_grad:
            return None
        return self.weight

    def matrix_below(self, adapter: LinearAdapter) -> Tensor:
        """What the map multiplies by without an active adapter and those behind it."""
        matrix = super().matrix()
        for other in self.on():
            if other is adapter:
                break
            matrix = other.matrix(matrix)
        return matrix

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


class StackAdapter(MatrixAdapter):
    """Changes the products of a stack of experts' matrices."""

    @abstractmethod
    def visit(self, x_ND: Tensor, ends_E: Tensor, y_NO: Tensor) -> Tensor:
        """What visits sorted by expert are given, of what they are given without this adapter."""


class ExpertsAdapter(Adapter):
    """Holds an adapter for each stack that is changed, under the stack's name."""

    def declare(self) -> dict[str, Parameter]:
        return {}


class AdaptedExperts(Experts):
    """Experts with adapters beside their stacks."""

    adapters: nn.ModuleDict

    def product(self, name: str, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        y_NO = super().product(name, x_ND, ends_E)
        for adapter in self.stacks().get(name, ()):
            if adapter.active:
                y_NO = adapter.visit(x_ND, ends_E, y_NO)
        return y_NO

    def stacks(self) -> dict[str, list[StackAdapter]]:
        """By the name of a stack, its adapters."""
        found: dict[str, list[StackAdapter]] = {}
        for holder in self.adapters.values():
            for name, adapter in holder.named_children():
                if isinstance(adapter, StackAdapter):
                    found.setdefault(name, []).append(adapter)
        return found


def attach(module: nn.Module, adapter: Adapter) -> None:
    """Put an adapter beside a module, under its own name. Who runs it is the caller's business (a hook), but for linear maps and
    experts."""
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
    if isinstance(module, Experts) and not isinstance(module, AdaptedExperts):
        module.__class__ = AdaptedExperts


BIAS = "bias"


def changing(model: nn.Module, active: bool = True) -> dict[str, list[MatrixAdapter]]:
    """By the name of a matrix, of a stack of them or of a bias, the adapters that change it, in order; `active`: of these only."""
    found: dict[str, list[MatrixAdapter]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Adapted):
            held = [one for one in module.adapters.values() if isinstance(one, LinearAdapter)]
            found[f"{path}.weight"] = [one for one in held if one.active or not active]
            if module.bias is not None:
                found[f"{path}.{BIAS}"] = found[f"{path}.weight"]
        elif isinstance(module, AdaptedExperts):
            for name, stacks in module.stacks().items():
                found[f"{path}.{name}"] = [one for one in stacks if one.active or not active]
    return found


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """All adapters in a model with their paths."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name, module
