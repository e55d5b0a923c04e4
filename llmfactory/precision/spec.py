"""Catalogue of precisions: in which number format a training step computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from llmfactory.precision.plugin import MeshPrecision


@dataclass(kw_only=True, slots=True)
class PrecisionSpec(Spec):
    """Base of the precisions."""

    def build(self, device_type: str) -> MeshPrecision:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of precision")


@dataclass(kw_only=True, slots=True)
class Fp32(PrecisionSpec):
    """Everything in float32."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp32 import fp32

        return fp32()


@dataclass(kw_only=True, slots=True)
class Fp64(PrecisionSpec):
    """Everything in float64: for proofs that two layouts compute the same numbers."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp64 import fp64

        return fp64()


@dataclass(kw_only=True, slots=True)
class Bf16Mixed(PrecisionSpec):
    """Weights, optimizer, norms, softmax and loss in float32, matrix products in bfloat16 (autocast)."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.bf16_mixed import bf16_mixed

        return bf16_mixed(device_type)


@dataclass(kw_only=True, slots=True)
class Fp16Mixed(PrecisionSpec):
    """Weights, optimizer, norms, softmax and loss in float32, matrix products in float16 with dynamic loss scaling
    (Micikevicius et al. 2018, section 3.2). A step whose gradients overflow is skipped and counted."""

    init_scale: float = 65536.0
    """Loss scale at the first step."""
    growth_interval: int = 2000
    """Steps without overflow after which the scale doubles; at an overflow it halves."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "init_scale", repair=65536)
        yield from at_least(self, 1, "growth_interval")

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp16_mixed import fp16_mixed

        return fp16_mixed(self, device_type)
