"""Catalogue of feed-forward parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least

if TYPE_CHECKING:
    from llmfactory.model.frame import Site
    from llmfactory.model.part import Part


class Activation(Enum):
    """Pointwise nonlinearities."""

    relu = "max(x, 0)"
    gelu = "x Phi(x), exact"
    gelu_tanh = "GELU by its tanh approximation (GPT-2)"
    silu = "x sigmoid(x)"
    relu2 = "max(x, 0)^2 (So et al. 2021)"


@dataclass(kw_only=True, slots=True)
class FfnSpec(Spec):
    """Base of the feed-forward parts."""

    hidden: int
    """Width of the hidden layer."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "hidden")

    def small(self, scale: float) -> dict[str, Any]:
        return {"hidden": max(1, round(self.hidden * scale))}

    def build(self, site: Site) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/ffn")


@dataclass(kw_only=True, slots=True)
class Mlp(FfnSpec):
    """down(activation(up(x))) (Vaswani et al. 2017, equation 2)."""

    activation: Activation
    """The nonlinearity."""
    bias: bool = True
    """Whether the two projections have a bias."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.mlp import MultiLayerPerceptron

        return MultiLayerPerceptron(self, site)


@dataclass(kw_only=True, slots=True)
class Glu(FfnSpec):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6). SwiGLU: silu; GeGLU: gelu; ReGLU: relu."""

    activation: Activation
    """The gate's nonlinearity."""
    bias: bool = False
    """Whether the three projections have a bias."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.glu import GatedLinearUnit

        return GatedLinearUnit(self, site)
