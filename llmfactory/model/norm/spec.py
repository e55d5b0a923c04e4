"""Catalogue of normalizations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above

if TYPE_CHECKING:
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class NormSpec(Spec):
    """Base of the normalizations over the last dimension."""

    def build(self, dim: int) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/norm")


@dataclass(kw_only=True, slots=True)
class RmsNorm(NormSpec):
    """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich 2019, equation 4)."""

    eps: float = 1e-5
    """Added to the mean square."""
    offset: float = 0.0
    """The gain is offset + weight, and the weight starts at 1 - offset (Gemma: 1)."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "eps", repair=1e-5)

    def build(self, dim: int) -> Part:
        from llmfactory.model.norm.rms_norm import RootMeanSquareNorm

        return RootMeanSquareNorm(self, dim)


@dataclass(kw_only=True, slots=True)
class LayerNorm(NormSpec):
    """(x - mean) / sqrt(var + eps) * gain + bias (Ba et al. 2016)."""

    eps: float = 1e-5
    """Added to the variance."""
    gain: bool = True
    """Whether each coordinate has a gain (OLMo has neither gain nor bias)."""
    bias: bool = True
    """Whether each coordinate has a bias."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "eps", repair=1e-5)

    def build(self, dim: int) -> Part:
        from llmfactory.model.norm.layer_norm import LayerNormalization

        return LayerNormalization(self, dim)


@dataclass(kw_only=True, slots=True)
class None_(NormSpec):
    """No normalization."""

    def build(self, dim: int) -> Part:
        from llmfactory.model.norm.none import NoNorm

        return NoNorm()
