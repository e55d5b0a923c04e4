"""The base of everything a model is built from."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from llmfactory.core.kernel import Kernel
from llmfactory.core.sharding import Constant, Layout, Normal, Parameter


class Part(nn.Module):
    """A module that declares, beside its forward, how its own parameters start and how they may be cut.

    Weight decay: every matrix decays, embeddings and learned positions among them, no vector (gain or bias) does. That is
    how GPT-2 and GPT-3 were trained again by others (Megatron-LM, nanoGPT: two or more dimensions decay).
    """

    reads: tuple[str, ...] = ()
    """Linear maps within it whose matrices it works with by itself, instead of calling them."""
    kernel: Kernel = Kernel.torch
    """Who computes those of its operations that have several implementations; `use` sets it."""
    adds_up: bool = False
    """What the parts within it return is only weighed and added up in what it returns: partial results over a tensor-parallel
    group may be summed there, once."""

    @abstractmethod
    def declare(self) -> dict[str, Parameter]:
        """A declaration for each parameter that this part owns (not those of parts within it), by its name relative to it.

        `model/declarations.py` collects them over a whole model and insists on exactly one for each parameter.
        """

    @property
    def own_terms(self) -> tuple[str, ...]:
        """Names of the terms that this part itself adds to `Context.record` in training."""
        return ()

    def visited(self) -> float:
        """Elements of matrices that one token is multiplied by: all of this part's and of the parts within it.

        A part whose tokens go different ways (experts) says its own number.
        """
        own = (self.get_parameter(name) for name in self.declare())
        return sum(weight.numel() for weight in own if weight.dim() >= 2) + sum(map(visited, self.children()))


def use(model: nn.Module, kernel: Kernel) -> None:
    """Let these kernels compute all parts of a model."""
    for module in model.modules():
        if isinstance(module, Part):
            module.kernel = kernel


def visited(module: nn.Module) -> float:
    """`Part.visited` of a part, or of all parts in a container."""
    return module.visited() if isinstance(module, Part) else sum(map(visited, module.children()))


def declare_linear(
    name: str, linear: nn.Linear | nn.Conv2d, std: float, layout: Layout, unit: int = 1, shared: bool = False
) -> dict[str, Parameter]:
    """Declarations of a linear map inside a part: normal weights, a bias of zero where it has one.

    A row-cut map sums its partial results, so its bias stays whole and is added once.
    """
    declared: dict[str, Parameter] = {}
    if not isinstance(linear, Part):  # which declares its matrix itself
        declared[f"{name}.weight"] = Parameter(Normal(std), layout, unit=unit, shared=shared, fan_in=1)
    if linear.bias is not None:
        bias_layout = Layout.replicated if layout is Layout.row else layout
        declared[f"{name}.bias"] = Parameter(Constant(0.0), bias_layout, decay=False, unit=unit, shared=shared)
    return declared
